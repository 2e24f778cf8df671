// Kernels on AMX tiles leave a thread's configuration of tiles as they found it: the caller's thread, and
// those that a caller lends.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>

#include "runtime/attend.h"
#include "runtime/cpu.h"
#include "runtime/error.h"
#include "runtime/kernel_registry.h"
#include "runtime/tensor.h"
#include "runtime/threads.h"

namespace posattn {
namespace {

#if defined(__x86_64__)
struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  bool operator==(const Config &other) const { return std::memcmp(this, &other, sizeof(Config)) == 0; }
};

// One that no kernel uses.
Config own_config() {
  Config config;
  for (int i = 0; i < 8; ++i)
    config.row_bytes[i] = static_cast<uint16_t>(8 + 4 * i), config.rows[i] = static_cast<uint8_t>(1 + i);
  return config;
}
void load(const Config &config) { __asm__ volatile("ldtilecfg %0" : : "m"(config)); }
Config current() {
  Config config;
  __asm__ volatile("sttilecfg %0" : "=m"(config));
  return config;
}
void release() { __asm__ volatile("tilerelease"); }

class TileState : public ::testing::Test {
 protected:
  void SetUp() override {
    const char *lacks = cpu_target(find_cpu_target("amx")).lacks();
    if (lacks) GTEST_SKIP() << "skipped: " << lacks;
    set_target("amx");
  }
  void TearDown() override {
    set_target("");
    set_parallel_for(nullptr, nullptr);
  }

  void attend_once() {
    const Tensor q(DType::bf16, {2, 4, 70, 64}), k(DType::bf16, {2, 4, 90, 64}),
        v(DType::bf16, {2, 4, 90, 64});
    const Tensor out(DType::bf16, {2, 4, 70, 64});
    AttendArgs args;
    args.query = q.view(), args.key = k.view(), args.value = v.view(), args.out = out;
    attend(args);
  }
};

TEST_F(TileState, OfTheCallerIsKept) {
  const Config mine = own_config();
  load(mine);
  attend_once();
  const Config after = current();
  release();
  EXPECT_TRUE(after == mine);
}

TEST_F(TileState, UnconfiguredStaysSo) {
  release();
  attend_once();
  EXPECT_EQ(current().palette, 0);
}

// Iterations on a thread that has tiles in use of its own.
int on_another_thread(void *kept, int64_t count, int (*iteration)(void *, int64_t), void *loop) {
  int error = 0;
  std::thread([&] {
    const Config mine = own_config();
    load(mine);
    for (int64_t i = 0; i < count && error == 0; ++i) error = iteration(loop, i);
    *static_cast<bool *>(kept) &= current() == mine;
    release();
  }).join();
  return error;
}

TEST_F(TileState, OfLentThreadsIsKept) {
  bool kept = true;
  set_parallel_for(on_another_thread, &kept);
  attend_once();
  EXPECT_TRUE(kept);
}
#endif

TEST(AmxTarget, SaysWhatIsMissing) {
  for (const TargetInfo &target : targets()) {
    if (target.name != std::string("amx") || target.cpu_has_it) continue;
    EXPECT_NE(target.reason.find("lacks"), std::string::npos) << target.reason;
    try {
      set_target("amx");
      FAIL() << "no error";
    } catch (const Error &error) {
      EXPECT_NE(std::string(error.what()).find(target.reason), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace posattn

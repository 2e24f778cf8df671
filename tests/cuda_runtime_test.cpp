// attend() on a GPU as far as it can be seen without one.
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "runtime/cuda/attend.h"
#include "runtime/cuda/driver.h"
#include "runtime/cuda/staged.h"
#include "runtime/error.h"
#include "tests/fake_cuda.h"

namespace posattn {
namespace {

using namespace cuda;
using oracle::asked;
using oracle::Asked;
using oracle::fake_driver;

class CudaRuntime : public ::testing::Test {
 protected:
  CudaRuntime()
      : query(DType::f32, {1, 2, 40, 64}), key(DType::f32, {1, 2, 70, 64}), out(DType::f32, {1, 2, 40, 64}) {
    static const Driver table = fake_driver();
    asked = Asked();
    set_driver_for_testing(&table);
    args.query = query.view(), args.key = key.view(), args.value = key.view(), args.out = out.view();
  }
  ~CudaRuntime() override { set_driver_for_testing(nullptr); }

  template <typename F>
  static std::string error_of(const F &call) {
    try {
      call();
    } catch (const Error &error) {
      return error.what();
    }
    return "none";
  }
  static bool has(const std::string &text, const char *part) { return text.find(part) != std::string::npos; }

  const CudaStream stream{reinterpret_cast<void *>(uintptr_t{4096}), 0};
  Tensor query, key, out;
  AttendArgs args;
};

TEST_F(CudaRuntime, LaunchesOnTheCallersStreamAndLoadsOnce) {
  attend(args, stream);
  EXPECT_EQ(asked.launches, 1);
  EXPECT_EQ(asked.modules, 1);
  EXPECT_EQ(asked.streams, std::set<Stream>{static_cast<Stream>(stream.handle)});
  EXPECT_GT(asked.largest_shared, 0);
  attend(args, stream);
  EXPECT_EQ(asked.launches, 2);
  EXPECT_EQ(asked.modules, 1);
}

// A dense bias is converted to float32, but for one that Hopper's copy engine takes in tiles.
TEST_F(CudaRuntime, ReadsABiasOfTheQueriesTypeAsItIs) {
  for (const bool in_tiles : {true, false}) {
    const int64_t keys = in_tiles ? 72 : 70;  // rows of whole vectors, or not
    const Tensor q(DType::bf16, {1, 2, 40, 64}), k(DType::bf16, {1, 2, keys, 64});
    const Tensor bias(DType::bf16, {2, 40, keys});
    Tensor result(DType::bf16, {1, 2, 40, 64});
    asked = Asked();
    asked.capability = 90;
    args.query = q.view(), args.key = k.view(), args.value = k.view(), args.out = result.view();
    args.dense_bias = bias.view();
    attend(args, stream);
    EXPECT_EQ(asked.launches, in_tiles ? 1 : 2);
  }
}

// A few queries of many batches and heads are no decoding: no keys are split, and nothing is merged.
TEST_F(CudaRuntime, ShortSequencesInLargeBatchesAreOneKernel) {
  for (const DType type : {DType::bf16, DType::f32}) {
    const Tensor x(type, {128, 6, 15, 64});
    const Tensor result(type, {128, 6, 15, 64});
    args.query = args.key = args.value = x.view(), args.out = result.view();
    for (const int64_t batch : {128, 2}) {
      asked = Asked();
      asked.capability = 90;
      for (TensorView *view : {&args.query, &args.key, &args.value}) *view = x.view().slice(0, 0, batch);
      args.out = result.view().slice(0, 0, batch);
      attend(args, stream);
      EXPECT_EQ(asked.launches, batch == 128 ? 1 : 2) << name_of(type);
    }
  }
}

// Decoding grouped heads runs on tensor cores whatever is added to scores, but not where keys are hidden that
// may be anything; a single row does not with masks.
TEST_F(CudaRuntime, DecodingGroupsWithMasksRunsOnTensorCores) {
  const Tensor q(DType::bf16, {1, 8, 1, 64}), result(DType::bf16, {1, 8, 1, 64});
  const Tensor k(DType::bf16, {1, 2, 70, 64});
  const Tensor mask(DType::f32, {70}), hidden(DType::boolean, {1, 70});
  args.query = q.view(), args.key = args.value = k.view(), args.out = result.view();
  const auto largest_shared = [&] {
    asked = Asked();
    attend(args, stream);
    return asked.largest_shared;
  };
  const int64_t plain = largest_shared();
  args.add_mask = mask.view();
  EXPECT_EQ(largest_shared(), plain);
  args.key_block_mask = hidden.view();
  EXPECT_LT(largest_shared(), plain);
  args.key_block_mask = {};
  args.query = q.view().slice(1, 0, 2), args.out = result.view().slice(1, 0, 2);
  EXPECT_LT(largest_shared(), plain);
}

// Where card and driver can, decoding starts while the kernel before it ends, and so does its merge.
TEST_F(CudaRuntime, DecodingStartsEarlyWhereItCan) {
  args.query = query.view().slice(2, 0, 1), args.out = out.view().slice(2, 0, 1);
  for (const int capability : {80, 90}) {
    asked = Asked();
    asked.capability = capability;
    attend(args, stream);
    EXPECT_EQ(asked.launches, 2) << capability;
    EXPECT_EQ(asked.early_launches, capability == 90 ? 2 : 0);
    EXPECT_EQ(asked.streams, std::set<Stream>{static_cast<Stream>(stream.handle)});
  }
  // Of a long call, the merge alone.
  const int64_t shape[] = {1, 2, 400000, 64}, strides[] = {0, 70 * 64, 0, 1};
  AttendArgs longer = args;
  longer.key = longer.value = TensorView(key.view().data(), DType::f32, 4, shape, strides);
  asked = Asked();
  asked.capability = 90;
  attend(longer, stream);
  EXPECT_EQ(asked.launches, 2);
  EXPECT_EQ(asked.early_launches, 1);
  static const Driver old = [] {
    Driver table = fake_driver();
    table.LaunchKernelEx = nullptr;
    return table;
  }();
  set_driver_for_testing(&old);
  asked = Asked();
  asked.capability = 90;
  attend(args, stream);
  EXPECT_EQ(asked.launches, 2);
  EXPECT_EQ(asked.early_launches, 0);
}

// Cards of 8.6 and 8.9 give a block of threads 99 KB of shared memory.
TEST_F(CudaRuntime, FitsTheSmallestCards) {
  for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
    for (const int64_t dim : {64, 128, 256}) {
      for (const int64_t queries : {1, 4, 40}) {
        for (const bool masked : {false, true}) {
          const Tensor q(type, {1, 2, queries, dim}), k(type, {1, 2, 70, dim}),
              hidden(DType::boolean, {1, 70});
          const Tensor result(type, {1, 2, queries, dim}), mask(DType::f32, {queries, 70});
          asked = Asked();
          asked.capability = 86;
          args = AttendArgs();
          args.query = q.view(), args.key = args.value = k.view(), args.out = result.view();
          if (masked) args.add_mask = mask.view(), args.key_block_mask = hidden.view();
          attend(args, stream);
          EXPECT_LE(asked.largest_shared, 99 << 10) << name_of(type) << " D " << dim << " x " << queries;
        }
      }
    }
  }
}

TEST_F(CudaRuntime, RefusesMemoryOfTheHost) {
  asked.known_addresses = false;
  const std::string text = error_of([&] { attend(args, stream); });
  EXPECT_TRUE(has(text, "expected memory of the GPU")) << text;
  EXPECT_EQ(asked.launches, 0);
}

TEST_F(CudaRuntime, RefusesASmallWorkspace) {
  const size_t size = attend_workspace_size(args, stream);
  const CudaMemory memory(size, stream);
  EXPECT_TRUE(
      has(error_of([&] { attend(args, stream, memory.data(), size / 2); }), "workspace: expected at least"));
  EXPECT_TRUE(has(error_of([&] { attend(args, stream, nullptr, size); }), "got null"));
  EXPECT_TRUE(
      has(error_of([&] { attend(args, stream, static_cast<char *>(memory.data()) + 16, size); }), "aligned"));
  EXPECT_EQ(asked.launches, 0);
  attend(args, stream, memory.data(), size);
  EXPECT_EQ(asked.launches, 1);
}

TEST_F(CudaRuntime, RefusesAnOldCard) {
  asked.capability = 75;
  const std::string text = error_of([&] { attend(args, stream); });
  EXPECT_TRUE(has(text, "no kernel of this program runs on fake GPU, compute capability 7.5")) << text;
  asked.capability = 80;
  attend(args, stream);
  EXPECT_EQ(asked.launches, 1);
}

TEST_F(CudaRuntime, SaysWhatALaunchFailedOfAndGoesOn) {
  asked.launch_result = 701;
  const std::string text = error_of([&] { attend(args, stream); });
  EXPECT_TRUE(has(text, "launching a kernel: a fake error (CUDA_ERROR_FAKE, 701)")) << text;
  asked.launch_result = kSuccess;
  EXPECT_EQ(error_of([&] { attend(args, stream); }), "none");
}

TEST_F(CudaRuntime, NoKeysGiveZerosWithoutAKernel) {
  std::fill_n(out.as<float>(), out.view().num_elements(), 3.f);
  args.key = args.value = key.view().slice(2, 0, 0);
  attend(args, stream);
  EXPECT_EQ(asked.launches, 0);
  for (int64_t i = 0; i < out.view().num_elements(); ++i) ASSERT_EQ(out.as<float>()[i], 0.f);
}

TEST(CudaWithoutDriver, SaysSoAndLeavesTheProcessUsable) {
  std::string why;
  if (find_driver(&why)) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_FALSE(why.empty());
  const Tensor query(DType::f32, {1, 1, 3, 64}), out(DType::f32, {1, 1, 3, 64});
  AttendArgs args;
  args.query = args.key = args.value = query.view();
  args.out = out.view();
  EXPECT_THROW(attend(args, CudaStream()), Error);
  EXPECT_THROW(attend_staged(args, CudaStream()), Error);
  attend(args);
}

}  // namespace
}  // namespace posattn

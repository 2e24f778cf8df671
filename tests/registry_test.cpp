// Kernels as they register themselves, how one is found, and what a call binds. The kernels here are plain
// C++ functions with the metadata that Halide would have written.
#include <HalideRuntime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "runtime/cpu.h"
#include "runtime/dispatch.h"
#include "runtime/error.h"
#include "runtime/kernel_call.h"
#include "runtime/kernel_registry.h"

namespace posattn {
namespace {

constexpr halide_type_t kF32(halide_type_float, 32), kI32(halide_type_int, 32), kBool(halide_type_uint, 1);
const int64_t kLanes = 24;
const int64_t *const kEstimates[] = {nullptr, &kLanes, nullptr, nullptr};
halide_scalar_value_t block_estimate() {
  halide_scalar_value_t value{};
  value.u.i32 = 192;
  return value;
}
const halide_scalar_value_t kBlock = block_estimate();

const halide_filter_argument_t kArguments[] = {
    {"x", halide_argument_kind_input_buffer, 2, kF32, nullptr, nullptr, nullptr, nullptr, kEstimates},
    {"factor", halide_argument_kind_input_scalar, 0, kF32, nullptr, nullptr, nullptr, nullptr, nullptr},
    {"split_blocks", halide_argument_kind_input_scalar, 0, kI32, nullptr, nullptr, nullptr, &kBlock, nullptr},
    {"flag", halide_argument_kind_input_scalar, 0, kBool, nullptr, nullptr, nullptr, nullptr, nullptr},
    {"alibi_slopes", halide_argument_kind_input_buffer, 1, kF32, nullptr, nullptr, nullptr, nullptr, nullptr},
    {"alibi_count", halide_argument_kind_input_scalar, 0, kI32, nullptr, nullptr, nullptr, nullptr, nullptr},
    {"y", halide_argument_kind_output_buffer, 1, kF32, nullptr, nullptr, nullptr, nullptr, nullptr},
};
const halide_filter_metadata_t kMetadata = {halide_filter_metadata_t::VERSION, 7, kArguments, "none", "fake"};
const halide_filter_metadata_t *metadata() { return &kMetadata; }

// y(j) = factor * x(1, j) + split_blocks + 100 * flag + alibi_slopes(3) + alibi_count
int call(void **arguments) {
  const auto *x = static_cast<const halide_buffer_t *>(arguments[0]);
  const float factor = *static_cast<const float *>(arguments[1]);
  const int blocks = *static_cast<const int *>(arguments[2]);
  const bool flag = *static_cast<const uint8_t *>(arguments[3]) != 0;
  const auto *slopes = static_cast<const halide_buffer_t *>(arguments[4]);
  const int count = *static_cast<const int *>(arguments[5]);
  auto *y = static_cast<halide_buffer_t *>(arguments[6]);
  if (factor < 0) return 7;
  for (int j = 0; j < y->dim[0].extent; ++j) {
    const float value = reinterpret_cast<const float *>(x->host)[x->dim[0].stride + j * x->dim[1].stride];
    reinterpret_cast<float *>(y->host)[j * y->dim[0].stride] =
        factor * value + static_cast<float>(blocks) + (flag ? 100.f : 0.f) +
        reinterpret_cast<const float *>(slopes->host)[3 * slopes->dim[0].stride] + static_cast<float>(count);
  }
  return 0;
}

// A machine that has none of the targets cannot run the library, nor this.
const char *best_target() {
  for (int i = 0; i < kNumCpuTargets; ++i) {
    if (cpu_target(i).available()) return cpu_target(i).name;
  }
  return "none";
}

const KernelInfo kKernels[] = {
    {"fake", "none", 64, "f32", best_target(), 1, call, metadata},
    {"fake", "none", 128, "f32", best_target(), 1, call, metadata},
    {"fake", "alibi+relative", 64, "f32", best_target(), 1, call, metadata},
    {"fake", "alibi+relative+t5", 64, "f32", best_target(), 1, call, metadata},
    {"fake", "mine+relative", 32, "f32", best_target(), 1, call, metadata},
    {"fake", "mine", 256, "f32", best_target(), 1, call, metadata},
    {"fake", "none", 64, "bf16", "a target of the future", 1, call, metadata},
    // Tuned for shapes; in no order.
    {"shaped", "none", 64, "f32", best_target(), 1, call, metadata, 256, 256},
    {"shaped", "none", 64, "f32", best_target(), 1, call, metadata},
    {"shaped", "none", 64, "f32", best_target(), 1, call, metadata, 0, 2048},
    {"shaped", "none", 64, "f32", best_target(), 1, call, metadata, 16, 256},
    {"shaped", "none", 128, "f32", best_target(), 1, call, metadata, 16, 16},
};
const KernelTable kTable(kKernels, sizeof(kKernels) / sizeof(kKernels[0]));

KernelQuery query_for(int64_t head_dim, std::initializer_list<const char *> branches = {}) {
  KernelQuery query;
  query.kind = "fake";
  query.head_dim = head_dim;
  query.target = find_cpu_target(best_target());
  for (const char *branch : branches) query.branches.add(branch);
  return query;
}

std::string found(const KernelQuery &query) {
  const Kernel *kernel = find_kernel(query);
  return kernel ? std::string(kernel->info->branches) + " " + std::to_string(kernel->info->head_dim)
                : "nothing";
}

TEST(Registry, FindsTheSmallestThatServes) {
  EXPECT_EQ(found(query_for(40)), "none 64");
  EXPECT_EQ(found(query_for(64)), "none 64");
  EXPECT_EQ(found(query_for(65)), "none 128");
  EXPECT_EQ(found(query_for(129)), "nothing");  // a kernel with branches of its own cannot be made neutral
  EXPECT_EQ(found(query_for(64, {"relative"})), "alibi+relative 64");
  EXPECT_EQ(found(query_for(64, {"t5"})), "alibi+relative+t5 64");
  EXPECT_EQ(found(query_for(64, {"relative", "alibi"})), "alibi+relative 64");
  EXPECT_EQ(found(query_for(32, {"mine"})), "mine 256");  // fewest branches come first
  EXPECT_EQ(found(query_for(32, {"mine", "relative"})), "mine+relative 32");
  EXPECT_EQ(found(query_for(33, {"mine", "relative"})), "nothing");
  EXPECT_EQ(found(query_for(64, {"unheard of"})), "nothing");
  KernelQuery exact = query_for(128);
  exact.exact_head_dim = true;
  EXPECT_EQ(found(exact), "none 128");
  exact.head_dim = 96;
  EXPECT_EQ(found(exact), "nothing");
  KernelQuery other = query_for(64);
  other.type = DType::bf16;
  EXPECT_EQ(found(other), "nothing");
  other.type = DType::i32;
  EXPECT_EQ(found(other), "nothing");
}

std::string shape_found(int64_t queries, int64_t keys, int64_t head_dim = 64) {
  KernelQuery query = query_for(head_dim);
  query.kind = "shaped";
  query.queries = queries, query.keys = keys;
  const Kernel *kernel = find_kernel(query);
  if (!kernel) return "nothing";
  return std::to_string(kernel->info->head_dim) + ": " + std::to_string(kernel->info->max_queries) + " x " +
         std::to_string(kernel->info->max_keys);
}

TEST(Registry, TakesWhatIsTunedForTheShape) {
  EXPECT_EQ(shape_found(16, 256), "64: 16 x 256");
  EXPECT_EQ(shape_found(17, 256), "64: 256 x 256");
  EXPECT_EQ(shape_found(256, 256), "64: 256 x 256");
  EXPECT_EQ(shape_found(16, 257), "64: 0 x 2048");
  EXPECT_EQ(shape_found(5000, 2048), "64: 0 x 2048");
  EXPECT_EQ(shape_found(1, 2049), "64: 0 x 0");
  EXPECT_EQ(shape_found(1, 1, 65), "128: 16 x 16");
  EXPECT_EQ(shape_found(17, 1, 65), "nothing");  // whoever tunes for a shape compiles a kernel for all others
}

TEST(Registry, ThePreferredKernelServesAllShapes) {
  KernelQuery query = query_for(64);
  query.kind = "shaped";
  query.queries = query.keys = 1000;
  for (const KernelInfo &kernel : kKernels) {
    if (kernel.kind != std::string("shaped") || kernel.head_dim != 64) continue;
    prefer_kernel(&kernel);
    EXPECT_EQ(find_kernel(query)->info, &kernel);
    query.head_dim = 65;  // which it cannot serve
    EXPECT_EQ(find_kernel(query), nullptr);
    query.head_dim = 64;
  }
  prefer_kernel(nullptr);
  EXPECT_EQ(shape_found(1000, 1000), "64: 0 x 2048");
}

TEST(Registry, AMissingKernelNamesWhatThereIs) {
  try {
    require_kernel(query_for(300, {"t5"}));
    FAIL();
  } catch (const Error &error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("fake with branches t5, head_dim at least 300, f32"), std::string::npos) << text;
    EXPECT_NE(text.find("mine+relative, head_dim 32, f32 (" + std::string(best_target()) + ")"),
              std::string::npos)
        << text;
  }
}

TEST(Registry, BranchSetsAreSorted) {
  BranchSet set;
  EXPECT_EQ(set.text(), "none");
  for (const char *name : {"t5", "alibi", "relative"}) set.add(name);
  EXPECT_EQ(set.text(), "alibi+relative+t5");
  EXPECT_TRUE(set.has("t5"));
  EXPECT_FALSE(set.has("t"));
  EXPECT_THROW(set.add("alibi"), Error);
}

struct Call {
  std::vector<float> x = {0, 1, 2, 3, 4, 5}, y = std::vector<float>(3), zeros = std::vector<float>(64);
  KernelBuffer x_buffer, y_buffer;
  const Kernel &kernel = require_kernel(query_for(64));
  Call() {
    x_buffer = kernel_buffer(TensorView(x.data(), DType::f32, {3, 2}));
    y_buffer = kernel_buffer(TensorView(y.data(), DType::f32, {3}));
  }
};

TEST(KernelCall, BindsByName) {
  Call c;
  KernelCall call(c.kernel);
  call.set("y", c.y_buffer)
      .set("flag", true)
      .set("split_blocks", 10)
      .set("factor", 2.0f)
      .set("x", c.x_buffer);
  call.set("no such input", 5).set_to_zero("alibi", c.zeros.data(), 64).run();
  EXPECT_EQ(c.y, (std::vector<float>{112, 116, 120}));
}

TEST(KernelCall, InsistsOnEveryInput) {
  Call c;
  KernelCall call(c.kernel);
  call.set("y", c.y_buffer)
      .set("flag", true)
      .set("split_blocks", 10)
      .set("factor", 2.0f)
      .set("x", c.x_buffer);
  EXPECT_THROW(call.run(), Error);
  call.set_to_zero("alib", c.zeros.data(), 64).set_to_zero("relative", c.zeros.data(), 64);
  EXPECT_THROW(call.run(), Error);
}

TEST(KernelCall, RefusesOtherTypesAndShapes) {
  Call c;
  KernelCall call(c.kernel);
  EXPECT_THROW(call.set("factor", 1), Error);
  EXPECT_THROW(call.set("split_blocks", 1.0f), Error);
  EXPECT_THROW(call.set("split_blocks", true), Error);
  EXPECT_THROW(call.set("x", c.y_buffer), Error);
  EXPECT_THROW(call.set("factor", c.y_buffer), Error);
  EXPECT_THROW(call.set("y", KernelBuffer(c.y.data(), DType::i32).dim(3, 1)), Error);
  EXPECT_THROW(call.set("y", KernelBuffer(c.y.data(), DType::f32).dim(int64_t{1} << 32, 1)), Error);
  EXPECT_THROW(call.set("x", KernelBuffer(c.x.data(), DType::f32).dim(2, 1).dim(3, int64_t{1} << 30)), Error);
  call.set("y", c.y_buffer)
      .set("flag", true)
      .set("split_blocks", 10)
      .set("factor", -1.0f)
      .set("x", c.x_buffer);
  EXPECT_THROW(call.set_to_zero("alibi", c.zeros.data(), 64).run(), Error);  // the kernel's own status
}

TEST(KernelCall, EstimatesAreWhatAKernelSaysOfItself) {
  Call c;
  EXPECT_EQ(c.kernel.estimate("x", 0, 1), 24);
  EXPECT_EQ(c.kernel.estimate("x", 1, 5), 5);
  EXPECT_EQ(c.kernel.estimate("split_blocks", 0, 5), 192);
  EXPECT_EQ(c.kernel.estimate("y", 0, 6), 6);
  EXPECT_EQ(c.kernel.estimate("nothing", 0, 7), 7);
}

TEST(KernelBuffer, WhatFits) {
  const auto fits = [](int64_t extent, int64_t stride) {
    return fits_kernel(KernelBuffer(nullptr, DType::f32).dim(extent, stride).dim(2, 1));
  };
  EXPECT_TRUE(fits(1 << 20, 1 << 10));
  EXPECT_FALSE(fits(1 << 21, 1 << 10));
  EXPECT_FALSE(fits(1 << 21, -(1 << 10)));
  EXPECT_FALSE(fits(3, INT64_MAX / 2));
  EXPECT_FALSE(fits(int64_t{1} << 31, 0));
  EXPECT_TRUE(fits(1, INT64_MAX));
}

TEST(Targets, OfThisMachine) {
  const std::vector<TargetInfo> all = targets();
  ASSERT_EQ(all.size(), static_cast<size_t>(kNumCpuTargets));
  for (const TargetInfo &target : all) {
    EXPECT_FALSE(target.reason.empty());
    if (target.cpu_has_it && target.linked) {
      set_target(target.name);
      EXPECT_STREQ(current_target(), target.name);
      // And its rest, if kernels are linked for that.
      const char *rest = cpu_target(find_cpu_target(target.name)).rest;
      const bool has_rest = rest && std::any_of(all.begin(), all.end(), [&](const TargetInfo &other) {
                              return other.name == std::string(rest) && other.linked;
                            });
      EXPECT_EQ(usable_targets().size, has_rest ? 2 : 1);
    } else {
      EXPECT_THROW(set_target(target.name), Error);
    }
  }
  EXPECT_THROW(set_target("mmx"), Error);
  set_target("");
  EXPECT_STREQ(current_target(), best_target());  // which every program here links
}

}  // namespace
}  // namespace posattn

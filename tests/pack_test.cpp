// Packed keys and values hold the bits of the unpacked ones, zeros where there is no key or it is hidden, and
// nothing outside of the tensors is read or written.
#include <gtest/gtest.h>

#include "tests/kernel_harness.h"

namespace posattn::testing {
namespace {

struct Case {
  int d, keys, heads, batch;
  bool visible;
  int row_stride;  // of the input, beyond its head dimension
};

const Case kCases[] = {{0, 1, 1, 1, false, 0},   {0, 15, 2, 3, true, 0},   {0, 32, 1, 2, false, 5},
                       {0, 100, 3, 1, true, 0},  {1, 33, 2, 1, false, 0},  {7, 65, 1, 2, true, 3},
                       {-1, 257, 2, 1, true, 0}, {0, 4097, 1, 1, false, 0}};

// Bits of every kind: NaNs, infinities, denormals.
uint32_t random_word(std::mt19937 &random) { return uint32_t(random()); }

class Unpacked {
 public:
  Unpacked(const KernelInfo &kernel, const Case &c, GuardedTensor::Guard guard)
      : d(c.d <= 0 ? kernel.head_dim + c.d : std::min(c.d, int(kernel.head_dim))),
        tensor(type_named(kernel.type), {d, c.keys, c.heads, c.batch},
               {1, d + c.row_stride, (d + c.row_stride) * c.keys, (d + c.row_stride) * c.keys * c.heads},
               guard),
        visible(DType::boolean, {c.keys, c.batch}, {}, guard),
        has_visible(c.visible) {
    std::mt19937 random(7);
    tensor.for_each([&](const std::vector<int> &i) { tensor.set_bits(i, random_word(random)); });
    visible.fill([&](const std::vector<int> &) { return random() % 3 ? 1 + random() % 2 : 0; });
  }
  // The bits that belong into the packed tensor.
  uint32_t expected(int row_d, int key, int head, int batch) const {
    if (row_d >= d || key >= tensor.extent(1)) return 0;
    if (has_visible && visible.get({key, batch}) == 0) return 0;
    return tensor.bits({row_d, key, head, batch});
  }
  int run(const KernelInfo &kernel, const char *input, const char *output, GuardedTensor &packed) {
    KernelCall call(kernel);
    call.tensor(input, tensor).number("has_visible", has_visible).tensor(output, packed);
    has_visible ? call.tensor("visible", visible) : call.absent("visible");
    return call.run();
  }

  int d;
  GuardedTensor tensor, visible;
  bool has_visible;
};

DType packed_type(const KernelInfo &kernel, int pairs) {
  return pairs == 2 ? DType::i32 : type_named(kernel.type);
}

// Of a kernel that packs values: words of two numbers are integers.
int numbers_in_element(const KernelInfo &kernel) {
  const halide_filter_metadata_t &metadata = *kernel.metadata();
  for (int i = 0; i < metadata.num_arguments; i++) {
    const halide_filter_argument_t &argument = metadata.arguments[i];
    if (argument.name == std::string("values")) return argument.type.code == halide_type_int ? 2 : 1;
  }
  return 1;
}

class Pack : public ::testing::TestWithParam<GuardedTensor::Guard> {};

TEST_P(Pack, Keys) {
  const auto kernels = runnable_kernels("pack_keys");
  ASSERT_FALSE(kernels.empty());
  for (const KernelInfo *kernel : kernels) {
    const int lanes = fixed_extent(*kernel, "keys", 0), elements = fixed_extent(*kernel, "keys", 1);
    ASSERT_GT(lanes, 0);
    const int pairs = kernel->head_dim / elements;
    for (const Case &c : kCases) {
      SCOPED_TRACE(describe(*kernel) + " keys " + std::to_string(c.keys) + " d " + std::to_string(c.d));
      Unpacked in(*kernel, c, GetParam());
      // One block more than needed, as a cache with room has; a gap between the heads.
      const int blocks = (c.keys + lanes - 1) / lanes + 1, block = lanes * elements;
      GuardedTensor keys(packed_type(*kernel, pairs), {lanes, elements, blocks, c.heads, c.batch},
                         {1, lanes, block, block * blocks + 24, (block * blocks + 24) * c.heads}, GetParam());
      ASSERT_EQ(in.run(*kernel, "k", "keys", keys), 0);
      int64_t wrong = 0;
      keys.for_each([&](const std::vector<int> &i) {
        const int key = i[2] * lanes + i[0];
        uint32_t expected = in.expected(i[1] * pairs, key, i[3], i[4]);
        if (pairs == 2) expected |= in.expected(i[1] * 2 + 1, key, i[3], i[4]) << 16;
        wrong += keys.bits(i) != expected;
      });
      EXPECT_EQ(wrong, 0);
      EXPECT_TRUE(keys.untouched());
    }
  }
}

TEST_P(Pack, Values) {
  const auto kernels = runnable_kernels("pack_values");
  ASSERT_FALSE(kernels.empty());
  for (const KernelInfo *kernel : kernels) {
    for (const Case &c : kCases) {
      SCOPED_TRACE(describe(*kernel) + " keys " + std::to_string(c.keys) + " d " + std::to_string(c.d));
      Unpacked in(*kernel, c, GetParam());
      const int d = kernel->head_dim, keys = (c.keys + 31) / 32 * 32, pairs = numbers_in_element(*kernel);
      const int rows = keys / pairs;
      GuardedTensor values(packed_type(*kernel, pairs), {d, rows, c.heads, c.batch},
                           {1, d, d * rows + 24, (d * rows + 24) * c.heads}, GetParam());
      ASSERT_EQ(in.run(*kernel, "v", "values", values), 0);
      int64_t wrong = 0;
      values.for_each([&](const std::vector<int> &i) {
        // Two keys of a tile of 32 that are 16 apart share a word.
        const int key = pairs == 2 ? i[1] / 16 * 32 + i[1] % 16 : i[1];
        uint32_t expected = in.expected(i[0], key, i[2], i[3]);
        if (pairs == 2) expected |= in.expected(i[0], key + 16, i[2], i[3]) << 16;
        wrong += values.bits(i) != expected;
      });
      EXPECT_EQ(wrong, 0);
      EXPECT_TRUE(values.untouched());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(GuardPage, Pack,
                         ::testing::Values(GuardedTensor::Guard::after, GuardedTensor::Guard::before));

}  // namespace
}  // namespace posattn::testing

// Tensors that reach further than a kernel's 32-bit offsets: attend() takes them apart. The memory is
// reserved, never touched but for the elements of the views.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cmath>
#include <random>
#include <stdexcept>

#include "runtime/attend.h"
#include "runtime/error.h"

namespace posattn {
namespace {

class Reserved {
 public:
  explicit Reserved(size_t bytes) : bytes_(bytes) {
    memory_ =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) throw std::runtime_error("no address space");
  }
  Reserved(const Reserved &) = delete;
  Reserved &operator=(const Reserved &) = delete;
  ~Reserved() { munmap(memory_, bytes_); }
  void *data() const { return memory_; }

 private:
  size_t bytes_;
  void *memory_;
};

Tensor random_tensor(std::initializer_list<int64_t> shape, uint32_t seed) {
  Tensor tensor(DType::f32, shape);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < tensor.view().num_elements(); ++i) tensor.as<float>()[i] = normal(random);
  return tensor;
}

// The tensor's elements `stride` apart in dimension `dim`, which was the outermost in memory.
MutableTensorView spread(const Reserved &memory, const TensorView &tensor, int dim, int64_t stride) {
  int64_t shape[4], strides[4], dense = 1;
  for (int d = 3; d >= 0; --d) {
    shape[d] = tensor.size(d);
    strides[d] = d == dim ? stride : dense;
    if (d != dim) dense *= shape[d];
  }
  const MutableTensorView view(memory.data(), DType::f32, 4, shape, strides);
  copy(tensor, view);
  return view;
}

double largest_difference(const TensorView &a, const TensorView &b) {
  const Tensor x = copy_of(a, DType::f32), y = copy_of(b, DType::f32);
  double largest = 0;
  for (int64_t i = 0; i < x.view().num_elements(); ++i) {
    largest = std::max(
        largest, std::fabs(static_cast<double>(x.as<float>()[i]) - static_cast<double>(y.as<float>()[i])));
  }
  return largest;
}

struct Problem {
  int64_t B = 3, H = 4, Tq, Tk = 90, D = 64;
  Tensor q, k, v, out, mask, slopes;
  Alibi alibi;
  explicit Problem(int64_t queries)
      : Tq(queries),
        q(random_tensor({B, H, Tq, D}, 1)),
        k(random_tensor({B, 2, Tk, D}, 2)),
        v(random_tensor({B, 2, Tk, D}, 3)),
        out(DType::f32, {B, H, Tq, D}),
        mask(random_tensor({B, 1, Tq, Tk}, 4)),
        slopes(random_tensor({H}, 5)),
        alibi(slopes.view()) {}
  AttendArgs args() const {
    AttendArgs args;
    args.query = q.view();
    args.key = k.view();
    args.value = v.view();
    args.out = out.view();
    args.add_mask = mask.view();
    args.causal = Causal::bottom_right;
    args.branches[0] = &alibi;
    return args;
  }
};

constexpr size_t kBytes = size_t{1} << 34;

TEST(AttendFar, BatchesFarApart) {
  for (int64_t queries : {1, 70}) {
    const Problem p(queries);
    attend(p.args());
    const int64_t stride = int64_t{1} << 30;
    for (int which = 0; which < 5; ++which) {
      const Reserved memory(kBytes);
      AttendArgs args = p.args();
      if (which == 0) args.query = spread(memory, p.q.view(), 0, stride);
      if (which == 1) args.key = spread(memory, p.k.view(), 0, stride);
      if (which == 2) args.value = spread(memory, p.v.view(), 0, stride);
      if (which == 3) args.add_mask = spread(memory, p.mask.view(), 0, stride);
      const Tensor out(DType::f32, {p.B, p.H, p.Tq, p.D});
      args.out = which == 4 ? spread(memory, out.view(), 0, stride) : out.view();
      attend(args);
      EXPECT_LE(largest_difference(args.out, p.out.view()), 1e-6)
          << which << " with " << queries << " queries";
    }
  }
}

TEST(AttendFar, QueriesFarApart) {
  const Problem p(70);
  attend(p.args());
  const int64_t stride = int64_t{1} << 25;  // 70 of them are beyond 2^31 elements
  for (int which = 0; which < 3; ++which) {
    const Reserved memory(kBytes);
    AttendArgs args = p.args();
    if (which == 0) args.query = spread(memory, p.q.view(), 2, stride);
    if (which == 1) args.add_mask = spread(memory, p.mask.view(), 2, stride);
    const Tensor out(DType::f32, {p.B, p.H, p.Tq, p.D});
    args.out = which == 2 ? spread(memory, out.view(), 2, stride) : out.view();
    attend(args);
    EXPECT_LE(largest_difference(args.out, p.out.view()), 1e-6) << which;
  }
}

TEST(AttendFar, KeysFarApartAreAnError) {
  const Problem p(70);
  const Reserved memory(kBytes);
  AttendArgs args = p.args();
  args.key = spread(memory, p.k.view(), 2, int64_t{1} << 25);
  try {
    attend(args);
    FAIL();
  } catch (const Error &error) {
    EXPECT_NE(std::string(error.what()).find("too large"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace posattn

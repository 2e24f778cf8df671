#include "tests/check.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <sstream>

#include "runtime/cuda/driver.h"
#include "runtime/error.h"
#include "runtime/kernel_registry.h"
#include "runtime/kv_cache.h"
#include "tests/device.h"

namespace posattn::oracle {

::testing::AssertionResult accurate(const AttendArgs &args, const std::vector<BranchFormula> &own) {
  const Comparison comparison = compare_outputs(args, own);
  if (comparison.ok) return ::testing::AssertionSuccess() << comparison.text;
  return ::testing::AssertionFailure() << comparison.text;
}

namespace {

// Tests of a GPU are skipped where there is none.
class Device : public ::testing::Environment {
 public:
  void SetUp() override {
    if (!on_cuda()) return;
    std::string why;
    if (!cuda::find_driver(&why)) GTEST_SKIP() << why;
  }
};
const auto *const environment = ::testing::AddGlobalTestEnvironment(new Device);

// Empty, or what is wrong.
std::string failure_on(Case &c, const std::string &target, AccuracyRule &rule) {
  try {
    set_device_target(target);
    c.clear_outputs();
    c.attend();
  } catch (const Error &error) {
    return std::string("threw: ") + error.what();
  }
  const std::string damage = c.damage();
  if (!damage.empty()) return damage;
  const Comparison comparison = rule.compare(c.args());
  return comparison.ok ? "" : comparison.text;
}

}  // namespace

::testing::AssertionResult passes(Case &c) {
  AccuracyRule rule(c.args());
  const std::vector<std::string> names = device_targets();
  std::string failures = names.empty() ? "no target to test" : "";
  for (const std::string &name : names) {
    const std::string failure = failure_on(c, name, rule);
    if (!failure.empty()) failures += "\n  on " + name + ": " + failure;
  }
  set_device_target("");
  if (failures.empty()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << describe(c.spec()) << failures;
}

::testing::AssertionResult passes(const CaseSpec &spec) {
  Case c(spec);
  return passes(c);
}

namespace {

AttendArgs with_outputs(AttendArgs args, const Outputs &outputs) {
  args.out = outputs.out;
  args.lse = outputs.lse;
  args.weights = outputs.weights.empty() ? MutableTensorView() : outputs.weights.view();
  return args;
}

}  // namespace

Outputs outputs_of(AttendArgs args) {
  const TensorView &q = args.query;
  const int64_t b = q.size(0), h = q.size(1), tq = q.size(2);
  const int64_t tk = args.cache ? args.cache->length() : args.key.size(2);
  const int64_t dv = args.cache ? args.cache->value_dim() : args.value.size(3);
  Outputs outputs;
  outputs.out = Tensor(q.dtype(), {b, h, tq, dv});
  outputs.lse = Tensor(DType::f32, {b, h, tq});
  if (args.need_weights == Weights::heads) outputs.weights = Tensor(q.dtype(), {b, h, tq, tk});
  if (args.need_weights == Weights::mean) outputs.weights = Tensor(q.dtype(), {b, tq, tk});
  attend_on_device(with_outputs(args, outputs));
  return outputs;
}

::testing::AssertionResult same_bits(const Outputs &a, const Outputs &b) {
  const ::testing::AssertionResult out = same_bits(a.out.view(), b.out.view());
  if (!out) return ::testing::AssertionFailure() << "out: " << out.message();
  const ::testing::AssertionResult lse = same_bits(a.lse.view(), b.lse.view());
  if (!lse) return ::testing::AssertionFailure() << "lse: " << lse.message();
  if (a.weights.empty() && b.weights.empty()) return ::testing::AssertionSuccess();
  const ::testing::AssertionResult weights = same_bits(a.weights.view(), b.weights.view());
  if (!weights) return ::testing::AssertionFailure() << "weights: " << weights.message();
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult same_answer(const AttendArgs &args, const Outputs &a, const Outputs &b) {
  return on_cuda() ? accurate(args, b) : same_bits(a, b);
}

::testing::AssertionResult accurate(AttendArgs args, const Outputs &outputs) {
  return accurate(with_outputs(args, outputs));
}

::testing::AssertionResult same_bits(const TensorView &a, const TensorView &b) {
  if (a.dtype() != b.dtype() || a.shape_text() != b.shape_text()) {
    return ::testing::AssertionFailure()
           << name_of(a.dtype()) << a.shape_text() << " is not " << name_of(b.dtype()) << b.shape_text();
  }
  const Tensor left = copy_of(a, a.dtype()), right = copy_of(b, b.dtype());
  const size_t size = static_cast<size_t>(size_of(a.dtype()));
  const size_t count = static_cast<size_t>(left.view().num_elements());
  size_t different = 0, first = 0;
  for (size_t i = count; i-- > 0;) {
    if (std::memcmp(left.as<char>() + i * size, right.as<char>() + i * size, size) != 0) {
      ++different;
      first = i;
    }
  }
  if (different == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << different << " of " << count << " elements of " << a.shape_text() << " differ; number " << first
         << ": " << values_of(left)[first] << " and " << values_of(right)[first];
}

void on_every_target(const std::function<void()> &body) {
  const std::vector<std::string> names = device_targets();
  EXPECT_FALSE(names.empty()) << "no target to test";
  for (const std::string &name : names) {
    SCOPED_TRACE("target " + name);
    set_device_target(name);
    body();
  }
  set_device_target("");
}

std::vector<std::vector<std::string>> linked_branch_sets() {
  const std::set<std::string> known = {"alibi", "relative", "t5"};
  std::set<std::vector<std::string>> sets = {{}};
  for (const KernelInfo *kernel : all_kernels()) {
    if (std::string(kernel->kind) != "prefill") continue;
    std::vector<std::string> names;
    std::istringstream text(kernel->branches);
    for (std::string name; std::getline(text, name, '+');) {
      if (known.count(name)) names.push_back(name);
    }
    // A kernel also serves a call that wants only some of its branches.
    for (unsigned chosen = 0; chosen < 1u << names.size(); ++chosen) {
      std::vector<std::string> some;
      for (size_t i = 0; i < names.size(); ++i) {
        if (chosen >> i & 1) some.push_back(names[i]);
      }
      sets.insert(some);
    }
  }
  return {sets.begin(), sets.end()};
}

}  // namespace posattn::oracle

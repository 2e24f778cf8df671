#include "tools/posattn/verify_case.h"

#include <algorithm>

#include "runtime/error.h"
#include "runtime/kv_cache.h"
#include "runtime/linear.h"
#include "tests/case.h"
#include "tests/device.h"
#include "tests/reference.h"
#include "tools/posattn/kernel_filter.h"

namespace posattn::cli {
namespace {

using oracle::Case;
using oracle::CaseSpec;
using oracle::Comparison;
using oracle::Layout;
using oracle::PositionKind;
using oracle::Random;

// Attention on tensor cores with some terms compiled in: prefill_plain, ...
bool is_special_prefill(const KernelInfo &kernel) {
  return std::string(kernel.kind).rfind("prefill_", 0) == 0 && !is_kind(kernel, "prefill_i8");
}

bool reads_int8(const KernelInfo &kernel) {
  return is_kind(kernel, "prefill_i8") || is_kind(kernel, "decode_i8");
}

// The type of calls that run this kernel: its own, except that tables of offsets are float32 for all types,
// and a target may have attention of another type only.
DType type_of_call(const KernelInfo &kernel) {
  const KernelInfo *any = nullptr;
  for (const KernelInfo *other : all_kernels()) {
    if (!is_prefill(*other) || std::string(other->target) != kernel.target) continue;
    if (std::string(other->type) == kernel.type) return type_of(kernel);
    any = other;
  }
  return type_of(any ? *any : kernel);
}

// The largest head that the linked attention kernels of this type and target take.
int64_t largest_head_dim(const KernelInfo &kernel) {
  int64_t largest = 0;
  for (const KernelInfo *other : all_kernels())
    if (is_prefill(*other) && type_of(*other) == type_of_call(kernel) &&
        std::string(other->target) == kernel.target)
      largest = std::max<int64_t>(largest, other->head_dim);
  return largest;
}

// Those that the kernel lacks.
void leave_out_terms(const KernelInfo &kernel, CaseSpec &spec) {
  for (oracle::MaskSpec *mask : {&spec.keep, &spec.block, &spec.add, &spec.dense}) mask->given = false;
  spec.key_keep = spec.key_block = spec.key_add = false;
  spec.softcap = 0;
  spec.rotary_dim = 0;
  spec.weights = Weights::none;
  spec.positions = PositionKind::none;
  spec.q_position_mask = spec.k_position_mask = false;
  if (spec.scale && *spec.scale <= 0) spec.scale.reset();
  // Of the type that the kernel takes as it is.
  const bool in_tiles = is_kind(kernel, "prefill_dense_16");
  spec.dense = {};
  spec.dense.given = in_tiles || is_kind(kernel, "prefill_dense");
  if (in_tiles) spec.dense.type = spec.type;
  if (is_kind(kernel, "prefill_offsets")) spec.branches = {"relative"};
}

// A random call of attend() that runs this kernel; small enough for the float64 reference to take
// milliseconds.
CaseSpec spec_for(const KernelInfo &kernel, uint64_t seed) {
  CaseSpec spec = oracle::random_spec(seed, {branch_names(kernel)});
  Random random(seed);
  spec.type = type_of_call(kernel);
  spec.batch = random.pick<int64_t>({1, 2});
  spec.kv_heads = random.pick<int64_t>({1, 2});
  spec.query_heads = spec.kv_heads * random.pick<int64_t>({1, 2, 3});

  const int64_t largest = kernel.head_dim ? kernel.head_dim : largest_head_dim(kernel);
  const int64_t smallest = kernel.head_dim ? next_smaller_head_dim(kernel) + 1 : 1;
  spec.head_dim = random.chance(0.6) ? largest : random.integer(smallest, largest);
  spec.value_dim = random.chance(0.6) ? spec.head_dim : random.integer(smallest, largest);

  if (is_kind(kernel, "decode_row")) spec.query_heads = spec.kv_heads;
  if (is_special_prefill(kernel) || is_kind(kernel, "decode_plain")) leave_out_terms(kernel, spec);
  if (std::string(kernel.target) != "simt" && runs_on_gpu(kernel.target)) {
    // Others run on CUDA cores.
    constexpr int64_t kAligned = 8;
    spec.layout = spec.out_layout = Layout::bhtd;
    for (int64_t *dim : {&spec.head_dim, &spec.value_dim}) *dim = (*dim + kAligned - 1) / kAligned * kAligned;
    if (is_kind(kernel, "decode")) {
      spec.key_keep = spec.key_block = spec.key_add = false;
      spec.query_heads = spec.kv_heads * random.pick<int64_t>({2, 3});
    }
  }

  // A few queries with many keys are decoding, with the keys in parts; many queries are prefill.
  const bool splits_keys = is_kind(kernel, "merge");
  if (splits_keys || is_decode(kernel)) {
    spec.queries = 1;
    // ALiBi of far keys makes logits of -100, whose rounding alone may be more than the rule allows.
    const bool alibi = std::count(spec.branches.begin(), spec.branches.end(), "alibi") > 0;
    spec.keys = splits_keys ? random.integer(4000, 9000) : random.integer(1, alibi ? 300 : 2500);
    spec.batch = 1;
  } else {
    spec.queries = random.integer(is_prefill(kernel) ? 40 : 1, 130);
    spec.keys = random.chance(0.4) ? spec.queries : random.integer(1, 260);
  }

  if (is_kind(kernel, "prefill_dense_16")) spec.keys = (spec.keys + 7) / 8 * 8;  // rows of whole vectors

  if (is_kind(kernel, "weights") && spec.weights == Weights::none)
    spec.weights = random.pick({Weights::mean, Weights::heads});
  if (is_kind(kernel, "offsets")) {
    // Consecutive positions are what such tables are made for.
    spec.positions = random.pick({PositionKind::none, PositionKind::arange, PositionKind::shifted});
    spec.q_position_mask = spec.k_position_mask = false;
  }
  if (reads_int8(kernel)) {
    spec.weights = Weights::none;
    spec.rotary_dim = 0;  // keys come from a cache
  }
  if (is_kind(kernel, "rotary")) spec.rotary_dim = 2;
  if (spec.rotary_dim) {
    spec.head_dim = std::max<int64_t>(spec.head_dim, 2);
    spec.rotary_dim = 2 * random.integer(1, spec.head_dim / 2);
  }
  return spec;
}

Verdict verdict_of(const Comparison &comparison, const std::string &what) {
  Verdict verdict{comparison.ok, comparison.error, comparison.bound, ""};
  if (!comparison.ok) verdict.text = what + ": " + comparison.text;
  return verdict;
}

Verdict verify_attention(const KernelInfo &kernel, uint64_t seed) {
  oracle::use_cuda(runs_on_gpu(kernel.target));
  Case c(spec_for(kernel, seed));
  const std::string what = oracle::describe(c.spec());
  AttendArgs args = c.args();
  if (!reads_int8(kernel)) {
    c.attend();
    const std::string damage = c.damage();
    if (!damage.empty()) return {false, 0, 0, what + ": " + damage};
    return verdict_of(oracle::compare_outputs(args), what);
  }
  const CaseSpec &spec = c.spec();
  KvCache cache(spec.batch, spec.kv_heads, spec.head_dim, spec.value_dim, spec.keys, spec.type,
                CacheFormat::int8);
  cache.append(args.key, args.value);
  args.key = args.value = TensorView();
  args.cache = &cache;
  attend(args);
  const Tensor key = cache.key_rows(), value = cache.value_rows();
  args.cache = nullptr;
  args.key = key.view(), args.value = value.view();
  return verdict_of(oracle::compare_outputs(args), what);
}

Tensor random_tensor(Random &random, DType type, std::initializer_list<int64_t> shape, double deviation) {
  Tensor numbers(DType::f32, shape);
  for (int64_t i = 0; i < numbers.view().num_elements(); ++i)
    numbers.as<float>()[i] = static_cast<float>(deviation * random.normal());
  return numbers.to(type);
}

float rounded(float value, DType type) {
  if (type == DType::bf16) return bf16_to_float(float_to_bf16(value));
  return type == DType::f16 ? f16_to_float(float_to_f16(value)) : value;
}

Verdict verify_projection(const KernelInfo &kernel, uint64_t seed) {
  Random random(seed);
  const DType type = type_of(kernel);
  const int64_t batch = random.integer(1, 3), tokens = random.integer(1, 70), in = random.integer(1, 300),
                out = random.integer(1, 200);
  const Tensor x = random_tensor(random, type, {batch, tokens, in}, 1);
  const Tensor weight = random_tensor(random, type, {out, in}, 0.1),
               bias = random_tensor(random, type, {out}, 1);
  const Tensor addend = random_tensor(random, DType::f32, {batch, tokens, in}, 1);
  const bool has_bias = random.chance(0.7), has_addend = random.chance(0.5);
  const Tensor y(type, {batch, tokens, out});
  Linear(weight.view(), has_bias ? TensorView(bias.view()) : TensorView(), type)
      .forward(x.view(), y, has_addend ? TensorView(addend.view()) : TensorView());

  const Tensor x32 = x.to(DType::f32), weight32 = weight.to(DType::f32), bias32 = bias.to(DType::f32);
  std::vector<double> exact;
  Tensor plain(DType::f32, {batch, tokens, out});
  for (int64_t row = 0; row < batch * tokens; ++row) {
    for (int64_t n = 0; n < out; ++n) {
      double sum = has_bias ? double{bias32.as<float>()[n]} : 0;
      float sum32 = 0;
      for (int64_t k = 0; k < in; ++k) {
        const float w = weight32.as<float>()[n * in + k], a = x32.as<float>()[row * in + k],
                    b = has_addend ? addend.as<float>()[row * in + k] : 0;
        sum += (double{a} + double{b}) * double{w};
        sum32 += rounded(a + b, type) * w;  // the plain way stores x + addend before it multiplies
      }
      exact.push_back(sum);
      plain.as<float>()[row * out + n] = has_bias ? sum32 + bias32.as<float>()[n] : sum32;
    }
  }
  const std::string what = "seed " + std::to_string(seed) + ": " + name_of(type) + " x " +
                           x.view().shape_text() + " weight " + weight.view().shape_text() +
                           (has_bias ? " bias" : "") + (has_addend ? " addend" : "");
  return verdict_of(oracle::compare("y", y.view(), exact, oracle::values_of(plain.to(type).view())), what);
}

}  // namespace

std::string why_not(const KernelInfo &kernel) {
  for (const std::string &name : branch_names(kernel))
    if (name != "relative" && name != "alibi" && name != "t5")
      return "no formula in float64 for branch " + name;
  if (is_prefill(kernel) || is_decode(kernel)) return "";
  for (const char *kind : {"merge", "weights", "offsets", "pack_keys", "pack_values", "rotary", "projection"})
    if (is_kind(kernel, kind)) return "";
  return "nothing to compute for kind " + std::string(kernel.kind);
}

Verdict verify(const KernelInfo &kernel, uint64_t seed) {
  try {
    return is_kind(kernel, "projection") ? verify_projection(kernel, seed) : verify_attention(kernel, seed);
  } catch (const Error &error) {
    const std::string what = is_kind(kernel, "projection") ? "seed " + std::to_string(seed)
                                                           : oracle::describe(spec_for(kernel, seed));
    return {false, 0, 0, what + ": " + error.what()};
  }
}

}  // namespace posattn::cli

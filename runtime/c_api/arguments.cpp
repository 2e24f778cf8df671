#include "runtime/c_api/arguments.h"

#include "runtime/c_api/handles.h"
#include "runtime/c_api/status.h"

namespace posattn::c_api {
namespace {

// C's enumerators are the C++ ones, number by number.
static_assert(POSATTN_F32 == static_cast<int>(DType::f32) && POSATTN_BF16 == static_cast<int>(DType::bf16));
static_assert(POSATTN_F16 == static_cast<int>(DType::f16) && POSATTN_F64 == static_cast<int>(DType::f64));
static_assert(POSATTN_I64 == static_cast<int>(DType::i64) && POSATTN_I32 == static_cast<int>(DType::i32));
static_assert(POSATTN_BOOL == static_cast<int>(DType::boolean));
static_assert(POSATTN_MAX_RANK == kMaxRank && POSATTN_MAX_BRANCHES == AttendArgs::kMaxBranches);

void check_enum(int32_t value, int32_t last, const char *what) {
  if (value < 0 || value > last) fail(what, ": expected 0 to ", last, ", got ", value);
}

}  // namespace

DType dtype_of(int32_t dtype, const char *what) {
  if (dtype < 0 || dtype > POSATTN_BOOL) {
    fail(what, ": expected a dtype of 0 to ", int{POSATTN_BOOL}, ", got ", dtype);
  }
  return static_cast<DType>(dtype);
}

MutableTensorView mutable_view_of(const posattn_tensor &tensor, const char *what) {
  if (tensor.rank == 0 && !tensor.data) return {};
  if (tensor.rank < 0 || tensor.rank > kMaxRank) {
    fail(what, ": expected a rank of 0 to ", kMaxRank, ", got ", tensor.rank);
  }
  try {
    return {tensor.data, dtype_of(tensor.dtype, "dtype"), tensor.rank, tensor.shape, tensor.stride};
  } catch (const Error &error) {
    fail(what, ": ", error.what());
  }
}

TensorView view_of(const posattn_tensor &tensor, const char *what) { return mutable_view_of(tensor, what); }

TensorView view_of(const posattn_tensor *tensor, const char *what) {
  return tensor ? view_of(*tensor, what) : TensorView();
}

Rope::Layout rope_layout_of(int32_t layout) {
  check_enum(layout, POSATTN_ROPE_HALF, "rope_layout");
  return layout == POSATTN_ROPE_HALF ? Rope::Layout::half : Rope::Layout::interleaved;
}

bool is_cuda(int32_t device) {
  check_enum(device, POSATTN_CUDA, "device");
  return device == POSATTN_CUDA;
}

Relative::Sign sign_of(int32_t sign) {
  check_enum(sign, POSATTN_PLUS, "sign");
  return sign == POSATTN_PLUS ? Relative::Sign::plus : Relative::Sign::minus;
}

Causal causal_of(int32_t causal) {
  check_enum(causal, POSATTN_CAUSAL_TOP_LEFT, "causal");
  if (causal == POSATTN_CAUSAL_NONE) return Causal::none;
  return causal == POSATTN_CAUSAL_TOP_LEFT ? Causal::top_left : Causal::bottom_right;
}

Weights weights_of(int32_t weights) {
  check_enum(weights, POSATTN_WEIGHTS_HEADS, "need_weights");
  if (weights == POSATTN_WEIGHTS_NONE) return Weights::none;
  return weights == POSATTN_WEIGHTS_MEAN ? Weights::mean : Weights::heads;
}

CustomBranch::CustomBranch(const posattn_branch &branch) : branch_(branch) {
  required(branch.name, "branch: name");
  if (branch.num_inputs < 0 || branch.num_inputs > BranchInputs::kCapacity) {
    fail(branch.name, ": expected 0 to ", BranchInputs::kCapacity, " inputs, got ", branch.num_inputs);
  }
  if (branch.num_inputs > 0) required(branch.inputs, branch.name);
  for (int i = 0; i < branch.num_inputs; ++i) required(branch.inputs[i].name, branch.name);
}

void CustomBranch::bind(BranchInputs &inputs) const {
  for (int i = 0; i < branch_.num_inputs; ++i) {
    const posattn_branch_input &input = branch_.inputs[i];
    switch (input.kind) {
      case POSATTN_INPUT_TENSOR:
        inputs.add(input.name, view_of(input.tensor, input.name));
        break;
      case POSATTN_INPUT_FLOAT:
        inputs.add(input.name, input.f);
        break;
      case POSATTN_INPUT_INT:
        inputs.add(input.name, input.i);
        break;
      default:
        fail(input.name, ": expected a kind of 0 to ", int{POSATTN_INPUT_INT}, ", got ", input.kind);
    }
  }
}

const LogitBranch *AttendCall::make_branch(const posattn_branch &branch, size_t index) {
  AnyBranch &slot = branches_[index];
  switch (branch.kind) {
    case POSATTN_RELATIVE:
      return &slot.emplace<Relative>(view_of(branch.table, "relative_bias"), sign_of(branch.sign));
    case POSATTN_ALIBI:
      return &slot.emplace<Alibi>(view_of(branch.table, "alibi_slopes"));
    case POSATTN_T5:
      return &slot.emplace<T5>(view_of(branch.table, "t5_bias"), branch.max_distance,
                               branch.bidirectional != 0);
    case POSATTN_CUSTOM:
      return &slot.emplace<CustomBranch>(branch);
    default:
      fail("branches: expected a kind of ", int{POSATTN_RELATIVE}, " to ", int{POSATTN_CUSTOM}, ", got ",
           branch.kind);
  }
}

AttendCall::AttendCall(const posattn_attend_args &args) {
  args_.query = view_of(args.query, "query");
  args_.key = view_of(args.key, "key");
  args_.value = view_of(args.value, "value");
  if (args.cache) {
    args_.cache = dynamic_cast<const KvCache *>(args.cache->cache.get());
    if (!args_.cache) fail("cache: expected one in the host's memory");
  }
  args_.out = mutable_view_of(args.out, "out");
  args_.lse = mutable_view_of(args.lse, "lse");
  args_.weights = mutable_view_of(args.weights, "weights");
  apply(args.options, args_);
  if (args.num_branches < 0 || args.num_branches > AttendArgs::kMaxBranches) {
    fail("branches: expected 0 to ", AttendArgs::kMaxBranches, ", got ", args.num_branches);
  }
  if (args.num_branches > 0) required(args.branches, "branches");
  for (size_t i = 0; i < static_cast<size_t>(args.num_branches); ++i) {
    args_.branches[i] = make_branch(args.branches[i], i);
  }
  const TensorView inv_freq = view_of(args.rope_inv_freq, "inv_freq");
  if (!inv_freq.empty()) {
    rope_ = Rope{inv_freq, rope_layout_of(args.rope_layout)};
    args_.rope = &*rope_;
  }
}

}  // namespace posattn::c_api

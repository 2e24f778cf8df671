// The structs of posattn.h as the C++ library's arguments. Whatever C lets through, such as an enumerator
// that is none, is an Error that names it.
#pragma once

#include <array>
#include <optional>
#include <variant>

#include "runtime/attend.h"
#include "runtime/c_api/posattn.h"

namespace posattn::c_api {

DType dtype_of(int32_t dtype, const char *what);
// Not given, or a null pointer: the empty view.
TensorView view_of(const posattn_tensor &tensor, const char *what);
TensorView view_of(const posattn_tensor *tensor, const char *what);
MutableTensorView mutable_view_of(const posattn_tensor &tensor, const char *what);
Rope::Layout rope_layout_of(int32_t layout);
bool is_cuda(int32_t device);
Relative::Sign sign_of(int32_t sign);

Causal causal_of(int32_t causal);
Weights weights_of(int32_t weights);

// To the fields that AttendArgs and ForwardOptions share.
template <typename Args>
void apply(const posattn_options &options, Args &args) {
  args.keep_mask = view_of(options.keep_mask, "keep_mask");
  args.block_mask = view_of(options.block_mask, "block_mask");
  args.add_mask = view_of(options.add_mask, "add_mask");
  args.dense_bias = view_of(options.dense_bias, "dense_bias");
  args.key_keep_mask = view_of(options.key_keep_mask, "key_keep_mask");
  args.key_block_mask = view_of(options.key_block_mask, "key_block_mask");
  args.key_add_mask = view_of(options.key_add_mask, "key_add_mask");
  args.key_lengths = view_of(options.key_lengths, "key_lengths");
  args.q_positions = view_of(options.q_positions, "q_positions");
  args.k_positions = view_of(options.k_positions, "k_positions");
  args.q_position_mask = view_of(options.q_position_mask, "q_position_mask");
  args.k_position_mask = view_of(options.k_position_mask, "k_position_mask");
  args.window_left = options.window_left;
  args.window_right = options.window_right;
  args.causal = causal_of(options.causal);
  args.need_weights = weights_of(options.need_weights);
  if (options.has_scale) args.scale = options.scale;
  args.softcap = options.softcap;
}

// A branch that the program's kernels were compiled with, described by the caller alone.
class CustomBranch : public LogitBranch {
 public:
  explicit CustomBranch(const posattn_branch &branch);
  const char *name() const override { return branch_.name; }
  void check(const AttendShape &) const override {}
  void bind(BranchInputs &inputs) const override;

 private:
  posattn_branch branch_;
};

// AttendArgs, and the branches that it points at.
class AttendCall {
 public:
  explicit AttendCall(const posattn_attend_args &args);
  AttendCall(const AttendCall &) = delete;
  AttendCall &operator=(const AttendCall &) = delete;
  const AttendArgs &args() const { return args_; }

 private:
  const LogitBranch *make_branch(const posattn_branch &branch, size_t index);

  using AnyBranch = std::variant<std::monostate, Relative, Alibi, T5, CustomBranch>;
  std::array<AnyBranch, AttendArgs::kMaxBranches> branches_;
  std::optional<Rope> rope_;
  AttendArgs args_;
};

}  // namespace posattn::c_api

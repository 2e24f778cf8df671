// posattn attend: the operator on a file of tensors.
#include "runtime/attend.h"

#include <memory>

#include "runtime/cuda/staged.h"
#include "runtime/error.h"
#include "runtime/safetensors.h"
#include "tools/posattn/commands.h"
#include "tools/posattn/inputs.h"
#include "tools/posattn/options.h"
#include "tools/posattn/output.h"

namespace posattn::cli {
namespace {

TensorView get_rank_4(Inputs &inputs, const char *name, std::optional<DType> type) {
  const TensorView tensor = inputs.get(name, type);
  if (tensor.rank() != 4)
    fail(name, ": expected 4 dimensions (batch, head, token, channel), got shape ", tensor.shape_text());
  return tensor;
}

void run(const AttentionOptions &options) {
  options.machine.apply();
  Inputs inputs(options.in);
  AttendArgs args;
  args.query = get_rank_4(inputs, "q", options.dtype);
  args.key = get_rank_4(inputs, "k", options.dtype);
  args.value = get_rank_4(inputs, "v", options.dtype);
  options.apply_to(args);
  inputs.bind(args);

  const int64_t batch = args.query.size(0), heads = args.query.size(1), queries = args.query.size(2),
                keys = args.key.size(2), channels = args.query.size(3);
  const PositionSet positions = inputs.positions(
      options, inputs.file(), "", {checked_product(heads, channels, "q: heads * channels"), heads, channels});
  for (size_t i = 0; i < positions.logit_branches().size(); ++i)
    args.branches.at(i) = positions.logit_branches()[i].get();
  args.rope = positions.rope();
  args.dense_bias = positions.dense();

  const DType type = args.query.dtype();
  const Tensor out(type, {batch, heads, queries, args.value.size(3)});
  args.out = out;
  Tensor lse, weights;
  if (options.lse) args.lse = lse = Tensor(DType::f32, {batch, heads, queries});
  if (options.need_weights == Weights::heads) weights = Tensor(type, {batch, heads, queries, keys});
  if (options.need_weights == Weights::mean) weights = Tensor(type, {batch, queries, keys});
  if (!weights.empty()) args.weights = weights;
  if (options.machine.cuda) {
    attend_staged(args, CudaStream());
  } else {
    attend(args);
  }

  save_results(options.out, inputs.get("q").dtype(), out, weights, lse);
  inputs.report_unused();
}

}  // namespace

void add_attend(CLI::App &app) {
  const auto options = std::make_shared<AttentionOptions>();
  CLI::App *command = app.add_subcommand("attend", "Attention on the tensors q, k, v of a file");
  command->footer(
      "IN holds q (B, Hq, Tq, D), k (B, Hkv, Tk, D), v (B, Hkv, Tk, Dv) and, where wanted, keep_mask, "
      "block_mask,\n"
      "add_mask, key_keep_mask, key_block_mask, key_add_mask, key_lengths, q_positions, k_positions,\n"
      "q_position_mask, k_position_mask, relative_bias, alibi_slopes, t5_bias, inv_freq, dense_bias.\n"
      "OUT gets out (B, Hq, Tq, Dv) and, when asked for, lse (B, Hq, Tq) and weights.");
  command->add_option("in", options->in, "File to read")->required()->type_name("IN.safetensors");
  options->add_to(*command, {"none", "relative", "alibi", "t5", "rope", "dense"});
  command->final_callback([options] { run(*options); });
}

}  // namespace posattn::cli

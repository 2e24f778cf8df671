// posattn mha: an attention layer on a file of tensors.
#include <memory>

#include "runtime/cuda/layers.h"
#include "runtime/error.h"
#include "runtime/layers/attention_layer.h"
#include "runtime/safetensors.h"
#include "tools/posattn/commands.h"
#include "tools/posattn/inputs.h"
#include "tools/posattn/options.h"
#include "tools/posattn/output.h"

namespace posattn::cli {
namespace {

struct MhaOptions : AttentionOptions {
  std::string layer, prefix;
  int64_t heads = 0, kv_heads = 0;
  bool add_zero_attn = false;
};

// Either query, key and value, or x and perhaps xa. Returns the name of the query stream.
const char *bind_streams(Inputs &inputs, std::optional<DType> dtype, ForwardArgs &args) {
  const bool short_names = inputs.has("x");
  for (const char *name : {"query", "key", "value"})
    if (short_names && inputs.has(name)) fail(name, ": expected either x or query, key and value, got both");
  if (short_names) {
    args.query = inputs.get("x", dtype);
    args.key = args.value = inputs.has("xa") ? inputs.get("xa", dtype) : args.query;
    return "x";
  }
  args.query = inputs.get("query", dtype);
  args.key = inputs.get("key", dtype);
  args.value = inputs.get("value", dtype);
  return "query";
}

void run(const MhaOptions &options) {
  options.machine.apply();
  Inputs inputs(options.in);
  ForwardArgs args;
  const char *name = bind_streams(inputs, options.dtype, args);
  options.apply_to(args);
  inputs.bind(args);
  args.need_lse = options.lse;

  const SafeTensors file = SafeTensors::open(options.layer);
  const LayerWeights weights = find_layer_weights(file, options.prefix);
  LayerOptions layer_options;
  layer_options.num_heads = options.heads;
  layer_options.num_kv_heads = options.kv_heads;
  layer_options.dtype = args.query.dtype();
  layer_options.add_zero_attn = options.add_zero_attn;
  const CudaDevice gpu;
  if (options.machine.cuda) layer_options.device = &gpu;
  const int64_t embed_dim = weights.query.size(0);
  if (embed_dim % options.heads)
    fail("--heads: expected a divisor of the layer's ", embed_dim, " channels, got ", options.heads);
  const AttentionLayer layer(
      weights, layer_options,
      inputs.positions(options, file, options.prefix, {embed_dim, options.heads, embed_dim / options.heads}));
  const ForwardResult result = layer.forward(args);  // on a GPU, copied there and back

  save_results(options.out, inputs.get(name).dtype(), result.out, result.weights, result.lse);
  inputs.report_unused();
}

}  // namespace

void add_mha(CLI::App &app) {
  const auto options = std::make_shared<MhaOptions>();
  CLI::App *command = app.add_subcommand("mha", "A multi-head attention layer on the tensors of a file");
  command->footer(
      "LAYER holds the projections under the names of torch.nn.MultiheadAttention, Whisper, ESPnet, BERT or "
      "T5, and\n"
      "pos_emb, rel_bias and other tables of its positions. IN holds query, key, value (B, T, E), or x and, "
      "for\n"
      "cross-attention, xa; masks, positions and tables as for attend.\n"
      "OUT gets out (B, Tq, E) and, when asked for, lse (B, H, Tq) and weights.");
  command->add_option("layer", options->layer, "File with the layer's weights")
      ->required()
      ->type_name("LAYER.safetensors");
  command->add_option("in", options->in, "File to read")->required()->type_name("IN.safetensors");
  command->add_option("--heads", options->heads, "Heads of the layer")
      ->required()
      ->check(CLI::PositiveNumber)
      ->type_name("H");
  command->add_option("--kv-heads", options->kv_heads, "Heads of its keys and values (--heads)")
      ->check(CLI::PositiveNumber)
      ->type_name("H");
  command
      ->add_option("--prefix", options->prefix, "Of the layer's tensors in a whole model, such as blocks.3.")
      ->type_name("P");
  command->add_flag("--add-zero-attn", options->add_zero_attn,
                    "One more key and value of zeros, as in torch");
  options->add_to(*command, {"none", "additive", "sinusoidal", "fourier", "mlp", "relative", "alibi", "t5",
                             "rope", "dense"});
  command->final_callback([options] { run(*options); });
}

}  // namespace posattn::cli

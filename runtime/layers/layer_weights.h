// The projections of an attention layer, found in a checkpoint by the names that frameworks write.
#pragma once

#include <string>

#include "runtime/safetensors.h"
#include "runtime/tensor.h"

namespace posattn {

// Views into the file. E embed_dim, d = E / heads. Weights are (out, in), as torch.nn.Linear stores them.
struct LayerWeights {
  TensorView query, query_bias;  // (E, E), (E); any bias may be empty
  TensorView key, key_bias;      // (kv_heads * d, kdim); Whisper's and ESPnet's key has no bias
  TensorView value, value_bias;  // (kv_heads * d, vdim)
  TensorView out, out_bias;      // (E, E), (E)
  TensorView bias_k, bias_v;     // torch's add_bias_kv: (1, 1, E), one more key and value at the end
  std::string names;             // which naming scheme it was, for people
  std::string prefix;            // where the projections lie: the one asked for, or that and "attn."
};

// Looks under `prefix` ("blocks.3.", or "" for a file that holds one layer; the dot may be left out) for
//   in_proj_weight, in_proj_bias, out_proj.*                    torch.nn.MultiheadAttention
//   q_proj_weight, k_proj_weight, v_proj_weight, in_proj_bias   the same with kdim or vdim
//   q_proj.*, k_proj.*, v_proj.*, out_proj.* or o_proj.*        symm-learning's RoPE, most of Hugging Face
//   query.*, key.*, value.*, out.*                              Whisper, ESPnet
//   self.query.*, self.key.*, self.value.*, output.dense.*      BERT
//   q.*, k.*, v.*, o.*                                          T5
// there, or in a module `attn.`, `self_attn.`, `attention.` or `SelfAttention.` of it. Throws Error that
// lists what was looked for, or says which tensor has which wrong shape.
LayerWeights find_layer_weights(const SafeTensors &file, const std::string &prefix = "");

}  // namespace posattn

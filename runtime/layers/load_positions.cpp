#include <sstream>

#include "runtime/error.h"
#include "runtime/layers/position_set.h"

namespace posattn {
namespace {

// Finds the tensors of one layer: `inputs` first, then beside the projections or in the module around them.
class Finder {
 public:
  Finder(const SafeTensors &layer, std::string prefix, const SafeTensors *inputs)
      : layer_(layer), prefix_(std::move(prefix)), inputs_(inputs) {
    if (!prefix_.empty() && prefix_.back() != '.') prefix_ += '.';
  }

  // Empty if no name is there.
  TensorView find(std::initializer_list<const char *> names) const {
    for (const char *name : names) {
      if (inputs_ && inputs_->has(name)) return inputs_->get(name);
    }
    for (const char *module : {"", "attn.", "self_attn.", "attention.", "SelfAttention."}) {
      for (const char *name : names) {
        const std::string full = prefix_ + module + name;
        if (layer_.has(full)) return layer_.get(full);
      }
    }
    return {};
  }

  TensorView need(const std::string &branch, std::initializer_list<const char *> names) const {
    const TensorView found = find(names);
    if (!found.empty()) return found;
    std::ostringstream text;
    text << "position '" << branch << "': expected a tensor";
    const char *join = " ";
    for (const char *name : names) {
      text << join << "'" << prefix_ << name << "'";
      join = " or ";
    }
    throw Error(text.str() + " (there or in attn.), found none");
  }

 private:
  const SafeTensors &layer_;
  std::string prefix_;
  const SafeTensors *inputs_;
};

// pos_mlp.0.weight, pos_mlp.2.weight, ...: torch.nn.Sequential numbers the activations between them too.
SmallMlp load_mlp(const Finder &file, Activation activation) {
  std::vector<SmallMlp::Layer> layers;
  for (int i = 0;; i += 2) {
    const std::string name = "pos_mlp." + std::to_string(i);
    const TensorView weight = file.find({(name + ".weight").c_str()});
    if (weight.empty()) break;
    const TensorView bias = file.find({(name + ".bias").c_str()});
    layers.push_back({copy_of(weight, DType::f32), bias.empty() ? Tensor() : copy_of(bias, DType::f32)});
  }
  return SmallMlp(std::move(layers), activation);
}

void add(PositionSet &set, const std::string &name, const Finder &file, const PositionContext &context,
         const PositionOptions &options) {
  if (name == "none") return;
  if (name == "additive") {
    const TensorView table = file.need(name, {"pos_emb", "pos_emb.weight"});
    set.add_encoder(std::make_shared<TableEncoder>(table, file.find({"invariant_projector"})));
  } else if (name == "sinusoidal") {
    set.add_encoder(std::make_shared<SinusoidalEncoder>(context.embed_dim, options.sinusoidal_layout,
                                                        options.sinusoidal_base));
  } else if (name == "fourier") {
    const TensorView frequencies = file.need(name, {"pos_fourier.weight"});
    set.add_encoder(std::make_shared<FourierEncoder>(frequencies, load_mlp(file, options.mlp_activation)));
  } else if (name == "mlp") {
    file.need(name, {"pos_mlp.0.weight"});
    set.add_encoder(std::make_shared<MlpEncoder>(load_mlp(file, options.mlp_activation)));
  } else if (name == "relative") {
    set.add_relative(file.need(name, {"rel_bias", "relative_bias"}), options.relative_sign);
  } else if (name == "alibi") {
    const TensorView slopes = file.find({"alibi_slopes"});
    slopes.empty() ? set.add_alibi(context.num_heads) : set.add_alibi(slopes);
  } else if (name == "t5") {
    set.add_t5(file.need(name, {"t5_bias", "relative_attention_bias.weight"}), options.t5_max_distance,
               options.t5_bidirectional);
  } else if (name == "rope") {
    const TensorView inv_freq = file.find({"inv_freq", "rotary_emb.inv_freq"});
    inv_freq.empty() ? set.add_rope(options.rope_dim ? options.rope_dim : context.head_dim, options.rope_base,
                                    options.rope_layout)
                     : set.add_rope(inv_freq, options.rope_layout);
  } else if (name == "dense") {
    set.add_dense(file.need(name, {"dense_bias"}));
  } else {
    fail(
        "position: '", name,
        "' is unknown; there are none, additive, sinusoidal, fourier, mlp, relative, alibi, t5, rope, dense");
  }
}

}  // namespace

PositionSet load_positions(const std::vector<std::string> &names, const SafeTensors &layer,
                           const std::string &prefix, const PositionContext &context,
                           const PositionOptions &options, const SafeTensors *inputs) {
  PositionSet set;
  const Finder file(layer, prefix, inputs);
  for (const std::string &name : names) add(set, name, file, context, options);
  return set;
}

}  // namespace posattn

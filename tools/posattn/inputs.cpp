#include "tools/posattn/inputs.h"

#include <algorithm>
#include <iostream>
#include <map>

#include "runtime/error.h"

namespace posattn::cli {
namespace {

// Whether load_positions looks for this tensor when it is asked for that branch.
bool belongs_to(const std::string &branch, const std::string &tensor) {
  static const std::multimap<std::string, std::string> tensors = {{"additive", "pos_emb"},
                                                                  {"additive", "pos_emb.weight"},
                                                                  {"additive", "invariant_projector"},
                                                                  {"fourier", "pos_fourier.weight"},
                                                                  {"relative", "relative_bias"},
                                                                  {"relative", "rel_bias"},
                                                                  {"alibi", "alibi_slopes"},
                                                                  {"t5", "t5_bias"},
                                                                  {"t5", "relative_attention_bias.weight"},
                                                                  {"rope", "inv_freq"},
                                                                  {"rope", "rotary_emb.inv_freq"},
                                                                  {"dense", "dense_bias"}};
  if (branch == "fourier" || branch == "mlp") {
    if (tensor.rfind("pos_mlp.", 0) == 0) return true;
  }
  const auto range = tensors.equal_range(branch);
  return std::any_of(range.first, range.second, [&](const auto &entry) { return entry.second == tensor; });
}

}  // namespace

TensorView Inputs::get(const std::string &name) {
  used_.insert(name);
  return file_.get(name);
}

TensorView Inputs::find(const std::string &name) {
  used_.insert(name);
  return file_.find(name);
}

TensorView Inputs::get(const std::string &name, std::optional<DType> type) {
  const TensorView stored = get(name);
  if (!type || stored.dtype() == *type) return stored;
  switch (stored.dtype()) {
    case DType::f32:
    case DType::f64:
    case DType::bf16:
    case DType::f16:
      return converted_.emplace_back(copy_of(stored, *type)).view();
    default:
      fail(name, ": expected floating-point numbers, got ", name_of(stored.dtype()));
  }
}

PositionSet Inputs::positions(const AttentionOptions &options, const SafeTensors &layer,
                              const std::string &prefix, const PositionContext &context) {
  for (const std::string &name : options.positions) {
    if (name == "rope" && has("inv_freq") && options.rope_frequencies)
      fail("--rope-base, --rope-dim: ", path_, " has inv_freq, which gives all frequencies");
    for (const std::string &tensor : file_.names())
      if (belongs_to(name, tensor)) used_.insert(tensor);
  }
  return load_positions(options.positions, layer, prefix, context, options.position_options, &file_);
}

void Inputs::report_unused() const {
  std::string names;
  for (const std::string &name : file_.names())
    if (!used_.count(name)) names += (names.empty() ? "" : ", ") + name;
  if (!names.empty()) std::cerr << "posattn: note: " << path_ << ": not used: " << names << '\n';
}

}  // namespace posattn::cli

// A file of named tensors, and who has read which of them.
#pragma once

#include <deque>
#include <set>
#include <string>

#include "runtime/safetensors.h"
#include "runtime/tensor.h"
#include "tools/posattn/options.h"

namespace posattn::cli {

// Views that it hands out live as long as it does.
class Inputs {
 public:
  explicit Inputs(const std::string &path) : path_(path), file_(SafeTensors::open(path)) {}

  const SafeTensors &file() const { return file_; }
  bool has(const std::string &name) const { return file_.has(name); }
  TensorView get(const std::string &name);   // Error if there is none
  TensorView find(const std::string &name);  // empty if there is none
  // A tensor of floats, as `type` if that is given.
  TensorView get(const std::string &name, std::optional<DType> type);

  // Masks, lengths and positions, to the fields of AttendArgs or ForwardArgs that have the tensors' names.
  template <typename Args>
  void bind(Args &args) {
    args.keep_mask = find("keep_mask");
    args.block_mask = find("block_mask");
    args.add_mask = find("add_mask");
    args.key_keep_mask = find("key_keep_mask");
    args.key_block_mask = find("key_block_mask");
    args.key_add_mask = find("key_add_mask");
    args.key_lengths = find("key_lengths");
    args.q_positions = find("q_positions");
    args.k_positions = find("k_positions");
    args.q_position_mask = find("q_position_mask");
    args.k_position_mask = find("k_position_mask");
  }

  // The branches that options name, with their tensors from this file or, where it lacks them, from `layer`
  // (which may be this file). Tensors of branches that are not asked for count as not used.
  PositionSet positions(const AttentionOptions &options, const SafeTensors &layer, const std::string &prefix,
                        const PositionContext &context);

  // A line on standard error that names the tensors which nothing has read, if there are any: a misspelt
  // keep_mask would be missed otherwise.
  void report_unused() const;

 private:
  std::string path_;
  SafeTensors file_;
  std::set<std::string> used_;
  std::deque<Tensor> converted_;
};

}  // namespace posattn::cli

#include "tools/posattn/output.h"

#include "runtime/safetensors.h"

namespace posattn::cli {

void save_results(const std::string &path, DType type, const Tensor &out, const Tensor &weights,
                  const Tensor &lse) {
  const Tensor stored_out = out.to(type);
  Tensor stored_weights;
  std::vector<std::pair<std::string, TensorView>> tensors = {{"out", stored_out.view()}};
  if (!weights.empty()) {
    stored_weights = weights.to(type);
    tensors.emplace_back("weights", stored_weights.view());
  }
  if (!lse.empty()) tensors.emplace_back("lse", lse.view());
  save_safetensors(path, tensors);
}

}  // namespace posattn::cli

#include "tests/device.h"

#include <cstdlib>
#include <cstring>

#include "runtime/cuda/layers.h"
#include "runtime/cuda/staged.h"
#include "runtime/cuda/targets.h"
#include "runtime/kernel_registry.h"
#include "tests/guarded_tensor.h"

namespace posattn::oracle {
namespace {

// Who miscounts a workspace misses by more than a few bytes.
constexpr size_t kBehindWorkspace = 1 << 18;
constexpr unsigned char kPattern = 0xff;  // NaN in every float type

bool cuda_in_environment() {
  const char *const device = std::getenv("POSATTN_TEST_DEVICE");
  return device && std::strcmp(device, "cuda") == 0;
}

bool cuda = cuda_in_environment();

std::string attend_on_cuda(const AttendArgs &args, size_t guard) {
  const CudaStream stream;
  StagedAttend staged(args, stream, guard);
  const size_t bytes = attend_workspace_size(staged.args(), stream);
  std::vector<unsigned char> pattern(bytes + kBehindWorkspace, kPattern);
  const CudaMemory workspace(pattern.size(), stream);
  copy_to_cuda(workspace.data(), pattern.data(), pattern.size(), stream);
  attend(staged.args(), stream, bytes > 0 ? workspace.data() : nullptr, bytes);
  staged.download(true);
  copy_from_cuda(pattern.data(), workspace.data(), pattern.size(), stream);
  for (size_t i = bytes; i < pattern.size(); ++i) {
    if (pattern[i] != kPattern)
      return "workspace: byte " + std::to_string(i - bytes) + " behind it was overwritten";
  }
  return "";
}

}  // namespace

bool on_cuda() { return cuda; }

void use_cuda(bool yes) { cuda = yes; }

std::vector<std::string> device_targets() {
  std::vector<std::string> names;
  for (const TargetInfo &target : on_cuda() ? cuda_targets() : targets()) {
    if (target.cpu_has_it && target.linked) names.push_back(target.name);
  }
  return names;
}

void set_device_target(const std::string &name) { on_cuda() ? set_cuda_target(name) : set_target(name); }

void attend_on_device(const AttendArgs &args) {
  if (on_cuda() && !args.cache) {
    attend_staged(args, CudaStream());
  } else {
    attend(args);
  }
}

const LayerDevice *layer_device() {
  static const CudaDevice gpu;
  return on_cuda() ? &gpu : nullptr;
}

void reorder_on_device(KvCacheBase &cache, const TensorView &source_rows) {
  if (!on_cuda()) return cache.reorder(source_rows);
  const CudaTensor rows(source_rows, CudaStream());
  cache.reorder(rows.view());
  synchronize(CudaStream());
}

size_t workspace_size_on_device(const AttendArgs &args) {
  return on_cuda() ? attend_workspace_size(args, CudaStream()) : attend_workspace_size(args);
}

std::string attend_in_guarded_workspace(const AttendArgs &args, size_t guard) {
  if (on_cuda()) return attend_on_cuda(args, guard);
  const size_t bytes = attend_workspace_size(args);
  MemoryLayout layout;
  layout.back = {int64_t{kBehindWorkspace}};
  GuardedTensor workspace("workspace", DType::boolean, {static_cast<int64_t>(bytes)}, layout);
  workspace.freeze();
  attend(args, workspace.view().data(), bytes);
  return workspace.damage(true);
}

}  // namespace posattn::oracle

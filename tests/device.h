// Where tests run attend(): on the CPU, or on a GPU if the environment says POSATTN_TEST_DEVICE=cuda.
#pragma once

#include <string>
#include <vector>

#include "runtime/attend.h"
#include "runtime/kv_cache_base.h"
#include "runtime/layers/layer_steps.h"

namespace posattn::oracle {

bool on_cuda();
void use_cuda(bool yes);  // whatever the environment says

// Kernel families of this program that the device runs.
std::vector<std::string> device_targets();
// Forces one ("": none).
void set_device_target(const std::string &name);

// attend() of tensors on the host, with a workspace of its own.
void attend_on_device(const AttendArgs &args);
// The same with a workspace of just the size that is asked for, which starts as NaN. Empty, or what was
// written outside of it. `guard` bytes around each tensor come back as they are on the device.
std::string attend_in_guarded_workspace(const AttendArgs &args, size_t guard);
// What attend() asks for there; the tensors' memory is not looked at.
size_t workspace_size_on_device(const AttendArgs &args);

// Where layers are made, for LayerOptions: null is the CPU. Their forward() takes tensors on the host.
const LayerDevice *layer_device();
// reorder() of a cache that such a layer made, with rows on the host.
void reorder_on_device(KvCacheBase &cache, const TensorView &source_rows);

}  // namespace posattn::oracle

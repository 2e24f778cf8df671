// The arguments of attend(), checked.
#pragma once

#include <array>

#include "runtime/attend.h"
#include "runtime/dispatch.h"

namespace posattn {

struct AttendProblem {
  AttendShape shape;
  DType type;
  int64_t group;  // query heads to a key head
  float scale;
  BranchSet branches;
  const LogitBranch *by_name[BranchSet::kCapacity];  // in the order of branches.names
  bool hides_keys;                                   // by key masks or lengths: what they hide may be NaN
  // Nothing to compute: some dimension of out is empty, or there are no keys.
  bool is_empty() const { return shape.batch == 0 || shape.queries == 0 || shape.keys == 0; }
};

// All that can be said without reading memory. Throws Error.
AttendProblem check_shapes(const AttendArgs &args);
// Pointers, and memory that overlaps: nothing is read yet. Throws Error.
void check_memory(const AttendArgs &args);
// The rest: lengths and positions, which are read. Throws Error.
void check_values(const AttendArgs &args, const AttendProblem &problem);

// Every tensor of a call by its name, outputs first; those that are not given are empty.
struct NamedView {
  const char *name;
  TensorView view;
};
constexpr size_t kNumOutputs = 3, kNumTensors = 19;
std::array<NamedView, kNumTensors> tensors_of(const AttendArgs &args);

}  // namespace posattn

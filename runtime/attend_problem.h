// The arguments of attend(), checked.
#pragma once

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
// The rest: pointers, lengths, positions, memory that overlaps. Throws Error.
void check_values(const AttendArgs &args, const AttendProblem &problem);

}  // namespace posattn

// One candidate on one call: what is to be measured, and what came out.
#pragma once

#include "nlohmann/json.hpp"

namespace posattn::tune {

// A job, as tools/tune/jobs.py writes it:
//   id, round                       copied into the record
//   kernel                          {kind, branches, head_dim, type, target}
//   shape, space, code, parameters  copied: the shape class, and what the kernel and its parameters are
//   call                            sizes, by the names of the options of `posattn bench`
//   threads, seconds, timeout       seconds to measure, and until it is killed
//   verify_cases, give_up           random computations to verify first; see TimingOptions
//   candidate, baseline             {library, symbol}; the library's path is relative to the current folder
//
// Its record: what is copied, with
//   time, device, versions
//   outcome     ok; wrong (not accurate); crash; timeout; error
//   detail      of all but ok
//   error       {max, bound}: the largest error against float64 for the call, and what would be allowed
//   seconds     {best, median} of the candidate; baseline_seconds
//   ratio       candidate / baseline, median over rounds; rounds; gave_up
nlohmann::ordered_json measure(const nlohmann::ordered_json &job);

// The part that is copied, for a job that cannot be measured.
nlohmann::ordered_json begin_record(const nlohmann::ordered_json &job);

}  // namespace posattn::tune

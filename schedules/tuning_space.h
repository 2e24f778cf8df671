// What a schedule leaves open for tools/tune to choose. It is declared beside the schedule that uses it, and
// read through the generator's own program (generators/main.cpp): a new schedule is tunable without a line in
// the tuner.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace posattn::schedules {

// An integer generator parameter: low, low + step, ... up to high; or that many times the parameter that
// `times` names, which comes before it.
struct TuningParameter {
  std::string name;
  int value;  // chosen by hand; what a build takes for which nothing was tuned
  int low, high, step = 1;
  std::string times = "";
};

// A value for each parameter.
using TuningPoint = std::map<std::string, int>;

// Sizes of a call that is timed, by the names of the options of `posattn bench`.
using TimedCall = std::vector<std::pair<std::string, int>>;

// Calls that share the best point. A kernel is compiled once for each class of different parameters, and the
// runtime takes the tightest class that a call fits in.
struct ShapeClass {
  std::string name;
  int max_queries, max_keys;  // 0: any. One class must take every call
  std::vector<TimedCall> timed;
  TuningPoint most = {};  // of parameters that shall be no larger in this class
};

// Of prefill on CPUs. Keys and values of far calls fit in no cache: with D 128 and float32, 16384 of them are
// 16 MB, and a task that takes 128 queries instead of 32 reads them less often (on Zen 4, beside other work,
// 100 against 91 GFLOP/s), while up to 8192 keys it is 1 to 3 % slower.
inline std::vector<ShapeClass> prefill_shapes() {
  return {{"short",
           256,
           256,
           {{{"heads", 8}, {"queries", 128}}, {{"heads", 4}, {"queries", 256}, {"causal", 1}}}},
          {"long",
           0,
           8192,
           {{{"heads", 2}, {"queries", 1024}},
            {{"heads", 1}, {"queries", 2048}, {"causal", 1}},
            {{"heads", 1}, {"queries", 256}, {"keys", 8192}}}},
          {"far", 0, 0, {{{"heads", 1}, {"queries", 512}, {"keys", 16384}}}}};
}

struct TuningSpace {
  std::vector<TuningParameter> parameters;
  std::vector<ShapeClass> shapes;
  // Why a point is not worth building, or cannot be; empty: it may be.
  std::function<std::string(const TuningPoint &)> infeasible;
};

// A generator whose schedule can be tuned. The generator's own parameters are set when it is asked.
class Tunable {
 public:
  virtual ~Tunable() = default;
  virtual TuningSpace tuning_space() const = 0;
};

// Whether a register tile of rows by vectors of sums fits, with an operand that is shared by a row and one by
// a column. Empty, or what is wrong.
inline std::string too_many_registers(const std::string &tile, int rows, int vectors, int registers) {
  const int needed = rows * vectors + 2;
  if (needed <= registers) return "";
  return tile + " takes " + std::to_string(needed) + " of " + std::to_string(registers) + " registers";
}

}  // namespace posattn::schedules

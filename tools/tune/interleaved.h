// Times two things in turns, so that whatever else the machine does hits both alike.
#pragma once

#include <functional>

namespace posattn::tune {

struct TimingOptions {
  double seconds = 0.3;  // for both together
  int threads = 1;       // one: the thread's own time counts, which others on the machine disturb less
  std::function<void()> finish;  // waits for what was begun, on a GPU; then the time until it is done counts
  double give_up = 0;  // > 0: stop early when the candidate takes more than so many times the baseline's time
};

struct Timing {
  double candidate_best = 0, candidate_median = 0, baseline_best = 0,
         baseline_median = 0;  // seconds of a call
  double ratio = 0;            // median over the rounds of candidate / baseline
  int rounds = 0;
  bool gave_up = false;
};

Timing interleave(const std::function<void()> &candidate, const std::function<void()> &baseline,
                  const TimingOptions &options);

}  // namespace posattn::tune

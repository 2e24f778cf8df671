#include "tools/tune/interleaved.h"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

namespace posattn::tune {
namespace {

constexpr double kSampleSeconds = 0.002;  // a shorter call is repeated to this length
constexpr double kLongSeconds = 0.02;     // from here on a call is its own warm-up
constexpr int kFewestRounds = 5, kRoundsToGiveUp = 3, kMostRepeats = 1 << 20;

double now(const TimingOptions &options) {
  timespec time{};
  clock_gettime(options.threads == 1 && !options.finish ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double timed(const std::function<void()> &run, int repeats, const TimingOptions &options) {
  const double start = now(options);
  for (int i = 0; i < repeats; ++i) run();
  if (options.finish) options.finish();
  return (now(options) - start) / repeats;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// One side, with as many calls a sample as the clock needs.
struct Side {
  const std::function<void()> &run;
  const TimingOptions &options;
  int repeats = 1;
  bool warm_up = true;
  std::vector<double> times = {};

  void prepare() {
    timed(run, 1, options);
    const double once = std::max(timed(run, 1, options), 1e-8);
    warm_up = once < kLongSeconds;
    repeats = static_cast<int>(std::clamp(std::round(kSampleSeconds / once), 1.0, double{kMostRepeats}));
  }
  void sample() {
    if (warm_up) run();  // the other side's data were in the caches
    times.push_back(timed(run, repeats, options));
  }
};

}  // namespace

Timing interleave(const std::function<void()> &candidate, const std::function<void()> &baseline,
                  const TimingOptions &options) {
  Side a{candidate, options}, b{baseline, options};
  a.prepare();
  b.prepare();
  Timing timing;
  std::vector<double> ratios;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(options.seconds);
  while (timing.rounds < kFewestRounds || std::chrono::steady_clock::now() < end) {
    const bool candidate_first = timing.rounds++ % 2 == 0;
    (candidate_first ? a : b).sample();
    (candidate_first ? b : a).sample();
    ratios.push_back(a.times.back() / b.times.back());
    timing.gave_up =
        options.give_up > 0 && timing.rounds >= kRoundsToGiveUp && median(ratios) > options.give_up;
    if (timing.gave_up) break;
  }
  timing.candidate_best = *std::min_element(a.times.begin(), a.times.end());
  timing.baseline_best = *std::min_element(b.times.begin(), b.times.end());
  timing.candidate_median = median(a.times);
  timing.baseline_median = median(b.times);
  timing.ratio = median(ratios);
  return timing;
}

}  // namespace posattn::tune

// Where the time of an embedding goes.
#pragma once

#include <chrono>

namespace sentences {

struct Timings {  // milliseconds
  double tokenise = 0, embed = 0, attention = 0, feed_forward = 0, pooling = 0;
};

// Adds the time from its construction to its destruction to `*milliseconds`; null: nothing.
class Stopwatch {
 public:
  explicit Stopwatch(double *milliseconds) : milliseconds_(milliseconds), start_(Clock::now()) {}
  ~Stopwatch() {
    if (milliseconds_)
      *milliseconds_ += std::chrono::duration<double, std::milli>(Clock::now() - start_).count();
  }
  Stopwatch(const Stopwatch &) = delete;
  Stopwatch &operator=(const Stopwatch &) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  double *milliseconds_;
  Clock::time_point start_;
};

}  // namespace sentences

// Warnings that come in floods.
#pragma once

#include <cstdint>
#include <optional>

#include "engine/clock.h"
#include "engine/mutex.h"

namespace ferrite {

// Lets one of many through every `seconds`, and counts the others. Thread-safe.
class LogLimiter {
 public:
  explicit LogLimiter(double seconds) : seconds_(seconds) {}

  // Whether to write a line now: if so, for how many that were held back since the last.
  std::optional<uint64_t> Admit(Clock::time_point now = Clock::now());

 private:
  const double seconds_;
  Mutex mutex_;
  std::optional<Clock::time_point> last_ ABSL_GUARDED_BY(mutex_);
  uint64_t held_back_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace ferrite

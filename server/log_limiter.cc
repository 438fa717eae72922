#include "server/log_limiter.h"

#include <utility>

namespace ferrite {

std::optional<uint64_t> LogLimiter::Admit(Clock::time_point now) {
  MutexLock lock(&mutex_);
  if (last_.has_value() && SecondsBetween(*last_, now) < seconds_) {
    ++held_back_;
    return std::nullopt;
  }
  last_ = now;
  return std::exchange(held_back_, 0);
}

}  // namespace ferrite

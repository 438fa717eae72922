// The engine's clock: monotonic, so that a change of the wall clock moves no deadline.
#pragma once

#include <chrono>

namespace ferrite {

using Clock = std::chrono::steady_clock;

inline double SecondsBetween(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace ferrite

// When the engine has to be done with a call.
#pragma once

#include <grpcpp/grpcpp.h>

#include "engine/clock.h"

namespace ferrite {

// gRPC's deadline is of the wall clock, the engine's of the monotonic one.
inline Clock::time_point CallDeadline(const grpc::ServerContextBase& call) {
  const auto deadline = call.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) {
    return Clock::time_point::max();
  }
  const auto left = deadline - std::chrono::system_clock::now();
  if (left > std::chrono::hours(24 * 365)) {
    return Clock::time_point::max();
  }
  return Clock::now() + left;
}

}  // namespace ferrite

// When a refused call is to be sent again.
#pragma once

#include <grpcpp/support/status.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <random>

namespace ferrite {

// A call is sent so many times at most.
inline constexpr int32_t kMostTries = 10;

// How long to wait, as a RESOURCE_EXHAUSTED advises by google.rpc.RetryInfo: it says that nothing
// of the call was served. None for any other status, and none if it advises more than a minute.
std::optional<std::chrono::milliseconds> RetryAdvice(const grpc::Status& status);

// The pause after `tries` tries: as advised, doubled with each try as long as it stays below 10 s,
// since the advice of a server does not know how many others it has advised; and up to a quarter
// longer by chance, so that they do not come back together.
std::chrono::milliseconds RetryPause(std::chrono::milliseconds advice, int32_t tries,
                                     std::minstd_rand* random);

}  // namespace ferrite

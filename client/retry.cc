#include "client/retry.h"

#include <algorithm>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace ferrite {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLongestAdvice{60'000};
constexpr milliseconds kLongestDoubled{10'000};

}  // namespace

std::optional<milliseconds> RetryAdvice(const grpc::Status& status) {
  google::rpc::Status details;
  if (status.error_code() != grpc::StatusCode::RESOURCE_EXHAUSTED ||
      !details.ParseFromString(status.error_details())) {
    return std::nullopt;
  }
  for (const google::protobuf::Any& detail : details.details()) {
    google::rpc::RetryInfo retry;
    if (!detail.UnpackTo(&retry) || !retry.has_retry_delay()) continue;
    const int64_t seconds = retry.retry_delay().seconds();
    if (seconds < 0 || seconds > kLongestAdvice.count() / 1000) return std::nullopt;
    const milliseconds advice(seconds * 1000 + retry.retry_delay().nanos() / 1'000'000);
    if (advice < milliseconds(0) || advice > kLongestAdvice) return std::nullopt;
    return advice;
  }
  return std::nullopt;
}

milliseconds RetryPause(milliseconds advice, int32_t tries, std::minstd_rand* random) {
  milliseconds pause = std::max(advice, milliseconds(1));
  for (int32_t i = 1; i < tries && pause * 2 <= kLongestDoubled; ++i) pause *= 2;
  return pause +
         milliseconds(std::uniform_int_distribution<int64_t>(0, pause.count() / 4)(*random));
}

}  // namespace ferrite

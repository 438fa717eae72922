// Why a request is not taken, for those who count it.
#pragma once

#include <array>

#include "absl/status/status.h"

namespace ferrite {

enum class Refusal {
  kNone,
  kQueueRequests,  // scheduler.max_waiting
  kQueueTokens,    // scheduler.max_waiting_tokens
  kLate,           // scheduler.refuse_late
  kClientLimit,    // of requests in flight
  kDraining,
  kUnhealthy,  // no worker can serve
};
inline constexpr std::array<const char*, 7> kRefusalNames = {
    "none", "queue_requests", "queue_tokens", "late", "client_limit", "draining", "unhealthy"};

// `status`, which is not OK, with a note of the reason that no client sees.
absl::Status Refused(absl::Status status, Refusal reason);

// The note's reason, or kNone.
Refusal RefusalOf(const absl::Status& status);

}  // namespace ferrite

// Turns the engine's statuses into gRPC's.
#pragma once

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"

namespace ferrite {

// The codes are the same by number. RESOURCE_EXHAUSTED carries advice when to try again: a
// google.rpc.RetryInfo in grpc-status-details-bin and, in the trailing metadata of `context`,
// grpc-retry-pushback-ms; that tells it from gRPC's own limit on message sizes.
grpc::Status ToGrpcStatus(const absl::Status& status, double retry_after_seconds,
                          grpc::ServerContextBase* context);

// For statuses that carry no advice.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace ferrite

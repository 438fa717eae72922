#include "server/status_mapping.h"

#include <cmath>
#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace ferrite {

grpc::Status ToGrpcStatus(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()),
                      std::string(status.message()));
}

grpc::Status ToGrpcStatus(const absl::Status& status, double retry_after_seconds,
                          grpc::ServerContextBase* context) {
  if (!absl::IsResourceExhausted(status)) {
    return ToGrpcStatus(status);
  }
  const auto milliseconds = static_cast<int64_t>(std::ceil(retry_after_seconds * 1e3));
  context->AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(milliseconds));

  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(milliseconds / 1000);
  retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(milliseconds % 1000) * 1'000'000);
  google::rpc::Status details;
  details.set_code(status.raw_code());
  details.set_message(std::string(status.message()));
  details.add_details()->PackFrom(retry);
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()),
                      std::string(status.message()), details.SerializeAsString());
}

}  // namespace ferrite

#include "server/status_mapping.h"

#include <grpcpp/test/server_context_test_spouse.h>
#include <gtest/gtest.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace ferrite {
namespace {

// The advice in the details, in seconds; -1 if there is none.
double RetryDelay(const grpc::Status& status) {
  google::rpc::Status details;
  if (status.error_details().empty() || !details.ParseFromString(status.error_details())) return -1;
  EXPECT_EQ(details.code(), status.error_code());
  EXPECT_EQ(details.message(), status.error_message());
  google::rpc::RetryInfo retry;
  if (details.details_size() != 1 || !details.details(0).UnpackTo(&retry)) return -1;
  return static_cast<double>(retry.retry_delay().seconds()) + 1e-9 * retry.retry_delay().nanos();
}

std::multimap<std::string, std::string> Trailers(grpc::ServerContext* context) {
  return grpc::testing::ServerContextTestSpouse(context).GetTrailingMetadata();
}

TEST(StatusMappingTest, ResourceExhaustedCarriesAdvice) {
  grpc::ServerContext context;
  const grpc::Status status =
      ToGrpcStatus(absl::ResourceExhaustedError("the queue is full"), 1.2345, &context);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "the queue is full");
  EXPECT_NEAR(RetryDelay(status), 1.235, 1e-9);
  const std::multimap<std::string, std::string> expected = {{"grpc-retry-pushback-ms", "1235"}};
  EXPECT_EQ(Trailers(&context), expected);
}

TEST(StatusMappingTest, NoOtherStatusDoes) {
  for (int code = 0; code <= 16; ++code) {
    if (code == static_cast<int>(absl::StatusCode::kResourceExhausted)) continue;
    grpc::ServerContext context;
    const grpc::Status status =
        ToGrpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "why"), 1, &context);
    EXPECT_EQ(static_cast<int>(status.error_code()), code);
    EXPECT_EQ(status.error_message(), code == 0 ? "" : "why");
    EXPECT_EQ(status.error_details(), "");
    EXPECT_TRUE(Trailers(&context).empty());
  }
}

}  // namespace
}  // namespace ferrite

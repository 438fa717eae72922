#include "tests/integration/open_stream.h"

#include <thread>

#include "engine/clock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace ferrite::test {

OpenStream::OpenStream(const std::shared_ptr<grpc::Channel>& channel,
                       const v1::GenerateRequest& request,
                       const std::map<std::string, std::string>& metadata,
                       std::chrono::milliseconds timeout)
    : stub_(v1::Inference::NewStub(channel)) {
  for (const auto& [key, value] : metadata) context_.AddMetadata(key, value);
  context_.set_deadline(std::chrono::system_clock::now() + timeout);
  reader_ = stub_->GenerateStream(&context_, request);
}

OpenStream::~OpenStream() {
  if (!finished_) {
    context_.TryCancel();
    Finish();
  }
}

grpc::Status OpenStream::Finish() {
  while (Read()) {
  }
  finished_ = true;
  return reader_->Finish();
}

std::optional<std::string> OpenStream::Trailer(const std::string& key) const {
  const auto& trailers = context_.GetServerTrailingMetadata();
  const auto found = trailers.find(key);
  if (found == trailers.end()) return std::nullopt;
  return std::string(found->second.data(), found->second.size());
}

grpc::Status RunOn(const std::shared_ptr<grpc::Channel>& channel,
                   const v1::GenerateRequest& request) {
  return OpenStream(channel, request).Finish();
}

bool HasAdvice(const grpc::Status& status) {
  google::rpc::Status details;
  google::rpc::RetryInfo retry;
  return !status.error_details().empty() && details.ParseFromString(status.error_details()) &&
         details.details_size() == 1 && details.details(0).UnpackTo(&retry) &&
         retry.retry_delay().seconds() + retry.retry_delay().nanos() > 0;
}

v1::GetLoadResponse GetLoad(Harness& harness) {
  grpc::ClientContext context;
  v1::GetLoadResponse load;
  EXPECT_TRUE(harness.control().GetLoad(&context, {}, &load).ok());
  return load;
}

bool Becomes(const std::function<bool()>& done) {
  const Clock::time_point limit = Clock::now() + std::chrono::seconds(30);
  while (!done() && Clock::now() < limit) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return done();
}

}  // namespace ferrite::test

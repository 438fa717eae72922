// A streamed call that a test reads as it likes, and what tests of flow control ask around it.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "tests/integration/harness.h"

namespace ferrite::test {

// Stays open until it is finished or destroyed; then it is cancelled.
class OpenStream {
 public:
  OpenStream(const std::shared_ptr<grpc::Channel>& channel, const v1::GenerateRequest& request,
             const std::map<std::string, std::string>& metadata = {},
             std::chrono::milliseconds timeout = std::chrono::minutes(2));
  ~OpenStream();
  OpenStream(const OpenStream&) = delete;
  OpenStream& operator=(const OpenStream&) = delete;

  bool Read() { return reader_->Read(&message_); }
  // Reads what is left.
  grpc::Status Finish();
  // After Finish.
  std::optional<std::string> Trailer(const std::string& key) const;
  const v1::GenerateStreamResponse& message() const { return message_; }

 private:
  const std::unique_ptr<v1::Inference::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>> reader_;
  v1::GenerateStreamResponse message_;
  bool finished_ = false;
};

// The whole call.
grpc::Status RunOn(const std::shared_ptr<grpc::Channel>& channel,
                   const v1::GenerateRequest& request);

// Whether the status says when to try again.
bool HasAdvice(const grpc::Status& status);

v1::GetLoadResponse GetLoad(Harness& harness);

// Whether `done` becomes true; gives up after 30 s.
bool Becomes(const std::function<bool()>& done);

}  // namespace ferrite::test

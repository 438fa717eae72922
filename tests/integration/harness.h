// A server in this process and real gRPC clients of it.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ferrite/v1/control.grpc.pb.h"
#include "ferrite/v1/inference.grpc.pb.h"
#include "server/server.h"
#include "tests/testing/fake_backend.h"

namespace ferrite::test {

// What a client saw of one streamed request.
struct Answer {
  grpc::Status status;
  v1::PromptInfo info;
  std::string text;
  std::vector<int32_t> token_ids;
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
  v1::StopMatch stop;
  v1::Usage usage;
  v1::Timings timings;
  int messages = 0;
  std::string broken_rule;  // of the order of messages; empty if none
};

class Harness {
 public:
  // The embedded model on the CPU in fp32.
  static std::unique_ptr<Harness> Stories(ServerConfig config = DefaultConfig());
  // The embedded model's tokenizer and config around a fake backend. Without a logger nothing is
  // logged.
  static std::unique_ptr<Harness> Fake(FakeBackendOptions fake,
                                       ServerConfig config = DefaultConfig(),
                                       std::unique_ptr<Logger> logger = nullptr);

  // Any free port of the loopback, fp32, no drain grace.
  static ServerConfig DefaultConfig();

  v1::Inference::Stub& inference() { return *inference_; }
  v1::Control::Stub& control() { return *control_; }
  Server& server() { return *server_; }
  FakeBackend& fake() { return *fake_; }
  const std::string& address() const { return address_; }
  std::shared_ptr<grpc::Channel> NewChannel() const;

  // Reads the whole stream. `on_delta` may cancel or dawdle; `prepare` may set a deadline.
  Answer Stream(const v1::GenerateRequest& request,
                const std::function<void(grpc::ClientContext&, const Answer&)>& on_delta = {},
                const std::function<void(grpc::ClientContext&)>& prepare = {});

  // The status of the unary call, and its response.
  grpc::Status Generate(const v1::GenerateRequest& request, v1::GenerateResponse* response);

  // True once no request is in flight and every KV block is free; gives up after 20 s.
  bool BecomesIdle();

  void StopServer() { server_.reset(); }

 private:
  void Connect();

  std::unique_ptr<Logger> logger_;
  std::unique_ptr<Server> server_;
  FakeBackend* fake_ = nullptr;
  std::string address_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Control::Stub> control_;
};

// `text` prompt, greedy, this many new tokens at most.
v1::GenerateRequest Greedy(const std::string& text, int32_t max_new_tokens);

// A request that only its length ends.
v1::GenerateRequest ToLength(int32_t tokens);

// A device with room for long requests, in no hurry.
FakeBackendOptions SlowDevice();

// tests/fixtures/golden/<name>.txt, copied from the reference program's output.
std::string ReadGolden(const std::string& name);

}  // namespace ferrite::test

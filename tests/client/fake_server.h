// A server that answers as a test tells it to, over a real connection.
#pragma once

#include <grpcpp/server.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ferrite/v1/control.grpc.pb.h"
#include "ferrite/v1/inference.grpc.pb.h"

namespace ferrite {

// Set the answers before the call and read the requests after it.
class FakeInference : public v1::Inference::Service {
 public:
  grpc::Status status;                          // of every call
  std::vector<std::string> deltas;              // of GenerateStream
  std::vector<std::vector<int32_t>> delta_ids;  // token ids of the deltas, as far as they are given
  v1::GenerateResponse response;                // of Generate; its choices end GenerateStream too
  // Instead of the above: answers of Generate and Embed, perhaps of several calls at a time, and
  // the messages of GenerateStream.
  std::function<grpc::Status(const v1::GenerateRequest&, v1::GenerateResponse*)> on_generate;
  std::function<grpc::Status(const v1::EmbedRequest&, v1::EmbedResponse*)> on_embed;
  std::vector<v1::GenerateStreamResponse> messages;
  std::function<std::vector<v1::GenerateStreamResponse>(const v1::GenerateRequest&)> on_stream;
  bool send_finished = true;     // the last message of GenerateStream
  bool wait_for_cancel = false;  // after the deltas
  v1::TokenizeResponse tokens;
  v1::DetokenizeResponse text;

  std::atomic<int> calls = 0;
  bool streamed = false;
  v1::GenerateRequest generate_request;
  std::vector<v1::EmbedRequest> embed_requests;
  v1::TokenizeRequest tokenize_request;
  v1::DetokenizeRequest detokenize_request;
  std::atomic<int> waiting = 0;  // calls that have come to wait_for_cancel
  std::atomic<bool> saw_cancel = false;

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        v1::GenerateResponse* answer) override;
  grpc::Status GenerateStream(grpc::ServerContext* context, const v1::GenerateRequest* request,
                              grpc::ServerWriter<v1::GenerateStreamResponse>* writer) override;
  grpc::Status Embed(grpc::ServerContext* context, const v1::EmbedRequest* request,
                     v1::EmbedResponse* answer) override;
  grpc::Status Tokenize(grpc::ServerContext* context, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* answer) override;
  grpc::Status Detokenize(grpc::ServerContext* context, const v1::DetokenizeRequest* request,
                          v1::DetokenizeResponse* answer) override;

 private:
  std::mutex mutex_;  // calls may come together, and each leaves its request
};

class FakeControl : public v1::Control::Service {
 public:
  grpc::Status status;
  v1::GetServerInfoResponse server;
  v1::GetModelInfoResponse model;
  v1::GetLoadResponse load;
  std::string aborted;

  grpc::Status GetServerInfo(grpc::ServerContext* context, const v1::GetServerInfoRequest* request,
                             v1::GetServerInfoResponse* answer) override;
  grpc::Status GetModelInfo(grpc::ServerContext* context, const v1::GetModelInfoRequest* request,
                            v1::GetModelInfoResponse* answer) override;
  grpc::Status GetLoad(grpc::ServerContext* context, const v1::GetLoadRequest* request,
                       v1::GetLoadResponse* answer) override;
  grpc::Status Abort(grpc::ServerContext* context, const v1::AbortRequest* request,
                     v1::AbortResponse* answer) override;
};

// Both services, gRPC's own health service and reflection, as the real server has them.
class FakeServer {
 public:
  // Listens on `address`; by default on a free port of this machine.
  explicit FakeServer(const std::string& address = "127.0.0.1:0");
  ~FakeServer();

  const std::string& address() const { return address_; }
  void SetServing(const std::string& service, bool serving);

  FakeInference inference;
  FakeControl control;

 private:
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

// RESOURCE_EXHAUSTED as the real server has it: with advice to try again after `delay`.
grpc::Status RefusedFor(std::chrono::milliseconds delay);

struct ClientResult {
  int exit_code;
  std::string out;
  std::string err;
};

// Runs the client in this process with `input` on its standard input.
ClientResult RunWith(const std::vector<std::string>& arguments, const std::string& input = "",
                     bool in_is_terminal = true, bool err_is_terminal = false);

}  // namespace ferrite

#include "tests/client/fake_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <sstream>
#include <thread>

#include "client/cli.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace ferrite {

grpc::Status FakeInference::Generate(grpc::ServerContext*, const v1::GenerateRequest* request,
                                     v1::GenerateResponse* answer) {
  ++calls;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    generate_request = *request;
  }
  if (on_generate) return on_generate(*request, answer);
  *answer = response;
  return status;
}

grpc::Status FakeInference::GenerateStream(grpc::ServerContext* context,
                                           const v1::GenerateRequest* request,
                                           grpc::ServerWriter<v1::GenerateStreamResponse>* writer) {
  ++calls;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    streamed = true;
    generate_request = *request;
  }
  const auto given = on_stream ? on_stream(*request) : messages;
  for (const v1::GenerateStreamResponse& each : given) writer->Write(each);
  if (!given.empty()) return status;
  v1::GenerateStreamResponse message;
  *message.mutable_started() = response.info();
  writer->Write(message);
  for (size_t i = 0; i < deltas.size(); ++i) {
    message.mutable_delta()->clear_choices();
    v1::Choice* choice = message.mutable_delta()->add_choices();
    choice->set_text(deltas[i]);
    if (i < delta_ids.size()) {
      choice->mutable_token_ids()->Assign(delta_ids[i].begin(), delta_ids[i].end());
    }
    writer->Write(message);
  }
  if (wait_for_cancel) {
    ++waiting;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!context->IsCancelled() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    if (context->IsCancelled()) saw_cancel = true;
    return grpc::Status::CANCELLED;
  }
  if (status.ok() && send_finished) {
    *message.mutable_finished()->mutable_choices() = response.choices();
    *message.mutable_finished()->mutable_usage() = response.usage();
    *message.mutable_finished()->mutable_timings() = response.timings();
    writer->Write(message);
  }
  return status;
}

grpc::Status FakeInference::Embed(grpc::ServerContext*, const v1::EmbedRequest* request,
                                  v1::EmbedResponse* answer) {
  ++calls;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    embed_requests.push_back(*request);
  }
  return on_embed ? on_embed(*request, answer) : status;
}

grpc::Status FakeInference::Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* answer) {
  ++calls;
  tokenize_request = *request;
  *answer = tokens;
  return status;
}

grpc::Status FakeInference::Detokenize(grpc::ServerContext*, const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* answer) {
  ++calls;
  detokenize_request = *request;
  *answer = text;
  return status;
}

grpc::Status FakeControl::GetServerInfo(grpc::ServerContext*, const v1::GetServerInfoRequest*,
                                        v1::GetServerInfoResponse* answer) {
  *answer = server;
  return status;
}

grpc::Status FakeControl::GetModelInfo(grpc::ServerContext*, const v1::GetModelInfoRequest*,
                                       v1::GetModelInfoResponse* answer) {
  *answer = model;
  return status;
}

grpc::Status FakeControl::GetLoad(grpc::ServerContext*, const v1::GetLoadRequest*,
                                  v1::GetLoadResponse* answer) {
  *answer = load;
  return status;
}

grpc::Status FakeControl::Abort(grpc::ServerContext*, const v1::AbortRequest* request,
                                v1::AbortResponse*) {
  aborted = request->request_id();
  return status;
}

FakeServer::FakeServer(const std::string& address) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&inference);
  builder.RegisterService(&control);
  server_ = builder.BuildAndStart();
  address_ = address.starts_with("unix:") ? address : "127.0.0.1:" + std::to_string(port);
}

FakeServer::~FakeServer() { server_->Shutdown(std::chrono::system_clock::now()); }

void FakeServer::SetServing(const std::string& service, bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(service, serving);
}

grpc::Status RefusedFor(std::chrono::milliseconds delay) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(delay.count() / 1000);
  retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(delay.count() % 1000) * 1'000'000);
  google::rpc::Status details;
  details.set_code(grpc::StatusCode::RESOURCE_EXHAUSTED);
  details.add_details()->PackFrom(retry);
  return {grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full", details.SerializeAsString()};
}

ClientResult RunWith(const std::vector<std::string>& arguments, const std::string& input,
                     bool in_is_terminal, bool err_is_terminal) {
  std::vector<const char*> argv = {"ferrite"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  std::istringstream in(input);
  std::ostringstream out;
  std::ostringstream err;
  const int exit_code = RunClient(static_cast<int>(argv.size()), argv.data(),
                                  {in, in_is_terminal, out, err, err_is_terminal});
  return {exit_code, out.str(), err.str()};
}

}  // namespace ferrite

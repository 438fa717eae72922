// The whole of a unary method that answers at once.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>

#include "server/authenticator.h"
#include "server/call_log.h"
#include "server/status_mapping.h"
#include "server/wire.h"

namespace ferrite {

// When to try again what was refused, though it costs little.
constexpr double kShortCallRetrySeconds = 1;

// Runs what it is given, as TokenizingPool::Run does with a short text.
struct RunAtOnce {
  template <typename Job>
  absl::Status operator()(int64_t /*bytes*/, const Job& job) const {
    job();
    return absl::OkStatus();
  }
};

// Asks `authenticator`, parses a Request, calls `serve(const Request&, Response*)`, which returns
// an absl::Status, and finishes the call, which is `rpc`, with what came of it. `run(bytes, job)`
// runs the job that serves a request of so many bytes, here or on another thread, or refuses to; a
// call that has been cancelled by then is not served.
template <typename Request, typename Response, typename Serve, typename Run = RunAtOnce>
grpc::ServerUnaryReactor* AnswerUnary(const Authenticator& authenticator, CallLog* log, Rpc rpc,
                                      grpc::CallbackServerContext* call,
                                      const grpc::ByteBuffer& request_bytes,
                                      grpc::ByteBuffer* response_bytes, Serve serve,
                                      Run run = Run()) {
  struct State {
    CallRecord record;
    Request request;
  };
  const std::shared_ptr<State> state(new State{CallRecord(log, rpc, call), {}});
  grpc::ServerUnaryReactor* const reactor = call->DefaultReactor();
  const auto finish = [=](const absl::Status& status) {
    state->record.End(status);
    reactor->Finish(ToGrpcStatus(status, kShortCallRetrySeconds, call));
  };
  const auto answer = [=] {
    if (call->IsCancelled()) {
      finish(state->record.CancellationStatus());
      return;
    }
    Response response;
    const absl::Status status = serve(state->request, &response);
    if (status.ok()) *response_bytes = SerializeMessage(response);
    finish(status);
  };
  const absl::StatusOr<CallPermit> permit = authenticator.Admit(*call, CallCost::kShort);
  absl::Status status = permit.status();
  if (status.ok()) {
    state->record.set_permit(*permit);
    status = ParseMessage(request_bytes, &state->request);
  }
  if (status.ok()) {
    status = run(static_cast<int64_t>(request_bytes.Length()), answer);
  }
  if (!status.ok()) finish(status);
  return reactor;
}

}  // namespace ferrite

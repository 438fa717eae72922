// The whole of a unary method that answers at once.
#pragma once

#include <grpcpp/grpcpp.h>

#include "server/authenticator.h"
#include "server/call_log.h"
#include "server/status_mapping.h"
#include "server/wire.h"

namespace ferrite {

// When to try again what was refused, though it costs little.
constexpr double kShortCallRetrySeconds = 1;

// Asks `authenticator`, parses a Request, calls `serve(const Request&, Response*)`, which returns
// an absl::Status, and finishes the call, which is `rpc`, with what came
// of it.
template <typename Request, typename Response, typename Serve>
grpc::ServerUnaryReactor* AnswerUnary(const Authenticator& authenticator, CallLog* log, Rpc rpc,
                                      grpc::CallbackServerContext* call,
                                      const grpc::ByteBuffer& request_bytes,
                                      grpc::ByteBuffer* response_bytes, Serve&& serve) {
  CallRecord record(log, rpc, call);
  Request request;
  Response response;
  const absl::StatusOr<CallPermit> permit = authenticator.Admit(*call, CallCost::kShort);
  absl::Status status = permit.status();
  if (status.ok()) {
    record.set_permit(*permit);
    status = ParseMessage(request_bytes, &request);
  }
  if (status.ok()) {
    status = serve(request, &response);
  }
  if (status.ok()) {
    *response_bytes = SerializeMessage(response);
  }
  record.End(status);
  grpc::ServerUnaryReactor* const reactor = call->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status, kShortCallRetrySeconds, call));
  return reactor;
}

}  // namespace ferrite

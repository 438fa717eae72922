// ferrite.v1.Control.
#pragma once

#include <atomic>

#include "ferrite/v1/control.grpc.pb.h"
#include "server/authenticator.h"
#include "server/call_log.h"
#include "server/generate_params.h"
#include "server/write_watch.h"

namespace ferrite {

using RawControlService = v1::Control::WithRawCallbackMethod_GetServerInfo<
    v1::Control::WithRawCallbackMethod_GetModelInfo<v1::Control::WithRawCallbackMethod_GetLoad<
        v1::Control::WithRawCallbackMethod_Abort<v1::Control::Service>>>>;

// Thread-safe. What it is given must outlive the gRPC server.
class ControlService final : public RawControlService {
 public:
  ControlService(const Authenticator* authenticator, RequestContext context, Engine* engine,
                 const WriteWatch* write_watch, CallLog* call_log, int64_t max_message_bytes,
                 Clock::time_point process_start)
      : authenticator_(authenticator),
        context_(context),
        engine_(engine),
        write_watch_(write_watch),
        call_log_(call_log),
        max_message_bytes_(max_message_bytes),
        process_start_(process_start) {}

  // The moment of readiness, and that of the drain, for the answers.
  void MarkReady() { startup_seconds_.store(SecondsBetween(process_start_, Clock::now())); }
  void MarkDraining() { draining_.store(true); }

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* call,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* call,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* call,
                                    const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* call,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;

 private:
  void FillServerInfo(v1::GetServerInfoResponse* answer) const;
  void FillModelInfo(v1::GetModelInfoResponse* answer) const;
  void FillLoad(v1::GetLoadResponse* answer) const;

  const Authenticator* const authenticator_;
  const RequestContext context_;
  Engine* const engine_;
  const WriteWatch* const write_watch_;
  CallLog* const call_log_;
  const int64_t max_message_bytes_;
  const Clock::time_point process_start_;
  std::atomic<double> startup_seconds_{0};
  std::atomic<bool> draining_{false};
};

}  // namespace ferrite

// The two reactors of Generate: one that streams and one that answers once.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "engine/engine.h"
#include "engine/mutex.h"
#include "engine/token_stream.h"
#include "ferrite/v1/inference.pb.h"
#include "server/authenticator.h"
#include "server/call_log.h"
#include "server/generate_params.h"
#include "server/load_report.h"
#include "server/sample_outputs.h"
#include "server/tokenizing_pool.h"
#include "server/write_watch.h"

namespace ferrite {

// What the reactors of a service share.
struct GenerateContext {
  const Authenticator* authenticator;
  RequestContext request;
  Engine* engine;
  std::atomic<int32_t>* active_calls;  // reactors that have not reached OnDone
  WriteWatch* write_watch;
  LoadReporter* load_reporter;
  CallLog* call_log;
  TokenizingPool* tokenizing_pool;

  // To be called before a call is finished with `status`: adds the load to its trailers, counts it,
  // and gives its place back before the client can know, whose next request must find it free.
  void OnCallEnding(grpc::CallbackServerContext* call, const absl::Status& status,
                    CallRecord* record, std::optional<CallPermit>* permit) const;
  // Cancels the call if its writes take too long, until what is returned is destroyed: in OnDone.
  std::unique_ptr<WriteWatch::Call> WatchWrites(grpc::CallbackServerContext* call,
                                                const std::string& request_id) const;
};

// Streams `started`, deltas and `finished`. Reactions, Resolve and OnOutput run concurrently on
// gRPC's, the tokenising and the engine's threads; MaybeWrite is the only place that starts a write
// or finishes. While a write is in flight new output merges in the TokenStreams. The reactor keeps
// itself alive until OnDone; whoever uses it on another thread holds a reference, so that the one
// who lets go last destroys it.
class GenerateStreamReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                                    public TokenStream::Listener {
 public:
  // Submits the request; what is wrong with it becomes the status of the call.
  static grpc::ServerWriteReactor<grpc::ByteBuffer>* Start(const GenerateContext& context,
                                                           grpc::CallbackServerContext* call,
                                                           const grpc::ByteBuffer& request);

  void OnOutput() override { MaybeWrite(); }
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  enum class Action { kNone, kWrite, kWriteAndFinish, kFinish };

  GenerateStreamReactor(const GenerateContext& context, grpc::CallbackServerContext* call);
  // Tokenises the prompt and submits the request, unless the call has been cancelled meanwhile.
  void Resolve(const v1::GenerateRequest& wire);
  absl::Status Submit(GenerateCall resolved) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void MaybeWrite();
  Action NextAction() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const GenerateContext context_;
  grpc::CallbackServerContext* const call_;
  CallRecord record_;  // of whoever sets finish_called_, from then on; before that, of mutex_
  std::unique_ptr<SampleOutputs> outputs_;  // null if the call was not admitted

  Mutex mutex_;
  std::shared_ptr<GenerateStreamReactor> self_ ABSL_GUARDED_BY(mutex_);  // until OnDone
  absl::Status refused_ ABSL_GUARDED_BY(mutex_);
  bool started_sent_ ABSL_GUARDED_BY(mutex_) = false;
  bool write_in_flight_ ABSL_GUARDED_BY(mutex_) = false;
  bool finish_called_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  v1::PromptInfo info_ ABSL_GUARDED_BY(mutex_);
  v1::GenerateStreamResponse message_ ABSL_GUARDED_BY(mutex_);
  grpc::ByteBuffer bytes_;     // of the write in flight; whoever set write_in_flight_ owns it
  absl::Status final_status_;  // likewise of finish_called_
  std::optional<CallPermit> permit_;          // likewise, once it is set
  std::unique_ptr<WriteWatch::Call> writes_;  // null if the call was not admitted
};

// Answers once, when every sample has ended or one has failed.
class GenerateUnaryReactor final : public grpc::ServerUnaryReactor, public TokenStream::Listener {
 public:
  static grpc::ServerUnaryReactor* Start(const GenerateContext& context,
                                         grpc::CallbackServerContext* call,
                                         const grpc::ByteBuffer& request,
                                         grpc::ByteBuffer* response);

  void OnOutput() override;
  void OnCancel() override;
  void OnDone() override;

 private:
  GenerateUnaryReactor(const GenerateContext& context, grpc::CallbackServerContext* call,
                       grpc::ByteBuffer* response);
  // As of the other reactor.
  void Resolve(const v1::GenerateRequest& wire);
  absl::Status Submit(GenerateCall resolved) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Refuse(const absl::Status& status);
  // Whether the caller is the one to finish the call, with `status`.
  bool ClaimFinish(const absl::Status& status);
  // Takes what has come, and says whether that is all.
  bool TakeOutput() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const GenerateContext context_;
  grpc::CallbackServerContext* const call_;
  grpc::ByteBuffer* const response_;
  CallRecord record_;  // of whoever sets finish_called_, from then on; before that, of mutex_
  std::unique_ptr<SampleOutputs> outputs_;    // null if the call was not admitted
  std::optional<CallPermit> permit_;          // whoever sets finish_called_ owns it once it is set
  std::unique_ptr<WriteWatch::Call> writes_;  // likewise, until OnDone

  Mutex mutex_;
  std::shared_ptr<GenerateUnaryReactor> self_ ABSL_GUARDED_BY(mutex_);  // until OnDone
  v1::GenerateResponse message_ ABSL_GUARDED_BY(mutex_);                // so far
  bool finish_called_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace ferrite

// The reactor of Embed.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "engine/engine.h"
#include "engine/mutex.h"
#include "engine/token_stream.h"
#include "server/authenticator.h"
#include "server/embed_params.h"
#include "server/generate_reactor.h"

namespace ferrite {

// Answers once, when every input has ended. The inputs are requests of the engine like any other,
// admitted together. The reactor keeps itself alive until OnDone.
class EmbedReactor final : public grpc::ServerUnaryReactor, public TokenStream::Listener {
 public:
  // Submits the inputs; what is wrong with them becomes the status of the call.
  static grpc::ServerUnaryReactor* Start(const GenerateContext& context,
                                         grpc::CallbackServerContext* call,
                                         const grpc::ByteBuffer& request,
                                         grpc::ByteBuffer* response);

  // An input has ended; each says so once.
  void OnOutput() override;
  void OnCancel() override;
  void OnDone() override;

 private:
  EmbedReactor(const GenerateContext& context, grpc::CallbackServerContext* call,
               grpc::ByteBuffer* response);
  // What comes before the inputs are looked at: admits the call and parses it.
  absl::Status Receive(const grpc::ByteBuffer& bytes, v1::EmbedRequest* wire);
  // Tokenises the inputs and submits them, unless the call has been cancelled meanwhile.
  void Resolve(const v1::EmbedRequest& wire);
  absl::Status Submit(EmbedCall resolved) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of all inputs, which have ended: the first failure, or OK and the answer in response_.
  absl::Status FillResponse();
  void CancelInputs() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether the caller is the one to finish the call.
  bool ClaimFinish();
  // By that caller.
  void End(const absl::Status& status);

  const GenerateContext context_;
  grpc::CallbackServerContext* const call_;
  grpc::ByteBuffer* const response_;
  CallRecord record_;  // of whoever sets finish_called_, from then on; before that, of mutex_
  // Set before the inputs are submitted, and then left alone.
  EmbedCall resolved_;  // its requests are the engine's by then
  std::string request_id_;
  std::vector<std::shared_ptr<TokenStream>> streams_;  // one an input; none if not admitted
  std::optional<CallPermit> permit_;          // whoever sets finish_called_ owns it once it is set
  std::unique_ptr<WriteWatch::Call> writes_;  // likewise, until OnDone

  std::atomic<size_t> num_running_{0};
  Mutex mutex_;
  std::shared_ptr<EmbedReactor> self_ ABSL_GUARDED_BY(mutex_);  // until OnDone
  bool finish_called_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace ferrite

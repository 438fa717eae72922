#include "server/embed_reactor.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"
#include "server/call_deadline.h"
#include "server/status_mapping.h"
#include "server/wire.h"

namespace ferrite {

EmbedReactor::EmbedReactor(const GenerateContext& context, grpc::CallbackServerContext* call,
                           grpc::ByteBuffer* response)
    : context_(context),
      call_(call),
      response_(response),
      record_(context.call_log, Rpc::kEmbed, call) {
  ++*context_.active_calls;
}

grpc::ServerUnaryReactor* EmbedReactor::Start(const GenerateContext& context,
                                              grpc::CallbackServerContext* call,
                                              const grpc::ByteBuffer& request,
                                              grpc::ByteBuffer* response) {
  const std::shared_ptr<EmbedReactor> reactor(new EmbedReactor(context, call, response));
  const auto wire = std::make_shared<v1::EmbedRequest>();
  absl::Status status;
  {
    MutexLock lock(&reactor->mutex_);
    reactor->self_ = reactor;
    status = reactor->Receive(request, wire.get());
  }
  if (status.ok()) {
    status = context.tokenizing_pool->Run(BytesToTokenize(*wire, *context.request.model),
                                          [reactor, wire] { reactor->Resolve(*wire); });
  }
  if (!status.ok() && reactor->ClaimFinish()) {
    reactor->End(status);
  }
  return reactor.get();
}

absl::Status EmbedReactor::Receive(const grpc::ByteBuffer& bytes, v1::EmbedRequest* wire) {
  ASSIGN_OR_RETURN(permit_, context_.authenticator->Admit(*call_, CallCost::kGeneration));
  record_.set_permit(*permit_);
  RETURN_IF_ERROR(context_.engine->CheckRoom());
  RETURN_IF_ERROR(ParseMessage(bytes, wire));
  return wire->inputs_size() > 1 ? permit_->Grow(wire->inputs_size(), "the number of inputs")
                                 : absl::OkStatus();
}

void EmbedReactor::Resolve(const v1::EmbedRequest& wire) {
  {
    MutexLock lock(&mutex_);
    if (finish_called_) return;  // cancelled while the inputs waited
  }
  absl::StatusOr<EmbedCall> resolved = ResolveEmbedRequest(wire, context_.request);
  absl::Status status = resolved.status();
  {
    MutexLock lock(&mutex_);
    if (finish_called_) return;
    if (resolved.ok()) status = Submit(*std::move(resolved));
  }
  if (!status.ok() && ClaimFinish()) {
    End(status);
  }
}

absl::Status EmbedReactor::Submit(EmbedCall resolved) {
  resolved_ = std::move(resolved);
  request_id_ = resolved_.requests.front().id;
  record_.figures.request_id = request_id_;
  record_.figures.prompt_tokens = static_cast<int32_t>(resolved_.prompt_tokens);
  const Clock::time_point deadline = CallDeadline(*call_);
  for (EngineRequest& request : resolved_.requests) {
    request.client = record_.client();
    request.cache_prompt = false;  // the contract has no salt for inputs
    request.received = record_.received();
    request.deadline = deadline;
    streams_.push_back(std::make_shared<TokenStream>(TokenStream::Mode::kEndOnly));
    streams_.back()->SetListener(self_);
  }
  num_running_ = streams_.size();
  return context_.engine->SubmitAll(std::move(resolved_.requests), streams_);
}

bool EmbedReactor::ClaimFinish() {
  MutexLock lock(&mutex_);
  return !std::exchange(finish_called_, true);
}

void EmbedReactor::End(const absl::Status& status) {
  context_.OnCallEnding(call_, status, &record_, &permit_);
  Finish(ToGrpcStatus(status, context_.engine->RetryAfterSeconds(), call_));
}

void EmbedReactor::OnOutput() {
  if (--num_running_ > 0 || !ClaimFinish()) {
    return;
  }
  const absl::Status status = FillResponse();
  writes_ = context_.WatchWrites(call_, request_id_);
  writes_->WriteStarted();
  End(status);
}

absl::Status EmbedReactor::FillResponse() {
  v1::EmbedResponse response;
  response.set_request_id(request_id_);
  response.set_model(context_.request.model->name);
  response.set_fingerprint(context_.request.model->fingerprint);
  response.set_pooling(ToWire(resolved_.pooling));
  response.set_normalized(resolved_.normalize);
  v1::Timings* const timings = response.mutable_timings();
  OutputDelta output;
  for (size_t i = 0; i < streams_.size(); ++i) {
    streams_[i]->Take(&output);
    const Completion& completion = streams_[i]->completion();
    RETURN_IF_ERROR(completion.status);
    if (completion.reason == FinishReason::kAborted) {
      return absl::AbortedError(absl::StrCat("request_id '", request_id_, "' was aborted"));
    }
    v1::Embedding* const embedding = response.add_embeddings();
    FinishEmbedding(output.embedding, resolved_.dimensions, resolved_.normalize,
                    embedding->mutable_values());
    embedding->set_prompt_tokens(completion.prompt_tokens);
    embedding->set_truncated(resolved_.truncated[i]);
    timings->set_queue_seconds(i == 0
                                   ? completion.queue_seconds
                                   : std::min(timings->queue_seconds(), completion.queue_seconds));
    timings->set_total_seconds(std::max(timings->total_seconds(), completion.total_seconds));
  }
  response.mutable_usage()->set_prompt_tokens(static_cast<int32_t>(resolved_.prompt_tokens));
  response.mutable_usage()->set_total_tokens(static_cast<int32_t>(resolved_.prompt_tokens));
  record_.figures.queue_seconds = timings->queue_seconds();
  record_.figures.finish_reason = "embedded";
  *response_ = SerializeMessage(response);
  return absl::OkStatus();
}

void EmbedReactor::CancelInputs() {
  for (const std::shared_ptr<TokenStream>& stream : streams_) {
    stream->Cancel();
  }
}

void EmbedReactor::OnCancel() {
  std::shared_ptr<EmbedReactor> self;
  {
    MutexLock lock(&mutex_);
    self = self_;
  }
  // First, so that nothing is submitted any more that would not be cancelled here.
  const bool claimed = ClaimFinish();
  {
    MutexLock lock(&mutex_);
    CancelInputs();
  }
  if (claimed) {
    End(record_.CancellationStatus());
  }
}

void EmbedReactor::OnDone() {
  writes_.reset();
  --*context_.active_calls;
  // The last reference may be this one: nothing of the object is touched afterwards.
  std::shared_ptr<EmbedReactor> self;
  MutexLock lock(&mutex_);
  self = std::move(self_);
}

}  // namespace ferrite

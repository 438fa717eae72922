#include "server/generate_reactor.h"

#include "engine/status_macros.h"
#include "server/call_deadline.h"
#include "server/status_mapping.h"
#include "server/wire.h"

namespace ferrite {
namespace {

// What comes before the prompt is looked at: admits the call and parses it.
absl::Status Receive(const GenerateContext& context, const grpc::CallbackServerContext& call,
                     const grpc::ByteBuffer& bytes, std::optional<CallPermit>* permit,
                     CallRecord* record, v1::GenerateRequest* wire) {
  ASSIGN_OR_RETURN(*permit, context.authenticator->Admit(call, CallCost::kGeneration));
  record->set_permit(**permit);
  RETURN_IF_ERROR(context.engine->CheckRoom());
  RETURN_IF_ERROR(ParseMessage(bytes, wire));
  return wire->output().n() > 1 ? (*permit)->Grow(wire->output().n(), "output.n")
                                : absl::OkStatus();
}

// How much there is to tokenise, or to look at.
int64_t PromptLength(const v1::GenerateRequest& wire) {
  return static_cast<int64_t>(wire.text().size()) + wire.token_ids().ids_size();
}

// Submits what has been resolved. `outputs` and `info` are filled before, since output may come at
// once.
absl::Status SubmitRequest(const GenerateContext& context, const grpc::CallbackServerContext& call,
                           GenerateCall resolved, TokenStream::Mode mode,
                           const std::weak_ptr<TokenStream::Listener>& listener,
                           std::unique_ptr<SampleOutputs>* outputs, v1::PromptInfo* info,
                           CallRecord* record) {
  EngineRequest& request = resolved.request;
  request.client = record->client();
  request.received = record->received();
  request.deadline = CallDeadline(call);
  info->set_request_id(request.id);
  info->set_model(context.request.model->name);
  info->set_fingerprint(context.request.model->fingerprint);
  info->set_prompt_tokens(static_cast<int32_t>(request.prompt.size()));
  info->set_truncated_tokens(resolved.truncated_tokens);
  record->figures.request_id = request.id;
  record->figures.prompt_tokens = info->prompt_tokens();
  *info->mutable_used() = UsedParams(request);
  *outputs = std::make_unique<SampleOutputs>(context.request.model->tokenizer.get(), resolved, mode,
                                             listener);
  return context.engine->Submit(std::move(request), (*outputs)->streams());
}

}  // namespace

void GenerateContext::OnCallEnding(grpc::CallbackServerContext* call, const absl::Status& status,
                                   CallRecord* record, std::optional<CallPermit>* permit) const {
  load_reporter->OnCallEnding(status.ok(), call);
  record->End(status);
  permit->reset();
}

std::unique_ptr<WriteWatch::Call> GenerateContext::WatchWrites(
    grpc::CallbackServerContext* call, const std::string& request_id) const {
  return write_watch->Watch(request_id, [call] { call->TryCancel(); });
}

GenerateStreamReactor::GenerateStreamReactor(const GenerateContext& context,
                                             grpc::CallbackServerContext* call)
    : context_(context), call_(call), record_(context.call_log, Rpc::kGenerateStream, call) {
  ++*context_.active_calls;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateStreamReactor::Start(
    const GenerateContext& context, grpc::CallbackServerContext* call,
    const grpc::ByteBuffer& request) {
  const std::shared_ptr<GenerateStreamReactor> reactor(new GenerateStreamReactor(context, call));
  const auto wire = std::make_shared<v1::GenerateRequest>();
  absl::Status status;
  {
    MutexLock lock(&reactor->mutex_);
    reactor->self_ = reactor;
    status = Receive(context, *call, request, &reactor->permit_, &reactor->record_, wire.get());
  }
  if (status.ok()) {
    status = context.tokenizing_pool->Run(PromptLength(*wire),
                                          [reactor, wire] { reactor->Resolve(*wire); });
  }
  if (!status.ok()) {
    {
      MutexLock lock(&reactor->mutex_);
      reactor->refused_ = std::move(status);
    }
    reactor->MaybeWrite();
  }
  return reactor.get();
}

void GenerateStreamReactor::Resolve(const v1::GenerateRequest& wire) {
  {
    MutexLock lock(&mutex_);
    if (cancelled_) return;  // while the prompt waited; OnCancel finishes the call
  }
  absl::StatusOr<GenerateCall> resolved = ResolveGenerateRequest(wire, context_.request);
  {
    // Holding the mutex keeps an OnOutput that comes at once from overtaking info_.
    MutexLock lock(&mutex_);
    if (cancelled_) return;
    refused_ = resolved.ok() ? Submit(*std::move(resolved)) : resolved.status();
  }
  MaybeWrite();
}

absl::Status GenerateStreamReactor::Submit(GenerateCall resolved) {
  RETURN_IF_ERROR(SubmitRequest(context_, *call_, std::move(resolved),
                                TokenStream::Mode::kEveryOutput, self_, &outputs_, &info_,
                                &record_));
  writes_ = context_.WatchWrites(call_, info_.request_id());
  return absl::OkStatus();
}

void GenerateStreamReactor::MaybeWrite() {
  Action action;
  {
    MutexLock lock(&mutex_);
    action = NextAction();
  }
  if (action == Action::kWriteAndFinish || action == Action::kFinish) {
    context_.OnCallEnding(call_, final_status_, &record_, &permit_);
  }
  if (action == Action::kWriteAndFinish || action == Action::kWrite) {
    writes_->WriteStarted();
  }
  // Outside the mutex: gRPC may run OnDone, on another thread, before these return.
  switch (action) {
    case Action::kNone:
      break;
    case Action::kWrite:
      StartWrite(&bytes_);
      break;
    case Action::kWriteAndFinish:
      StartWriteAndFinish(&bytes_, grpc::WriteOptions(), grpc::Status::OK);
      break;
    case Action::kFinish:
      Finish(ToGrpcStatus(final_status_, context_.engine->RetryAfterSeconds(), call_));
      break;
  }
}

GenerateStreamReactor::Action GenerateStreamReactor::NextAction() {
  if (write_in_flight_ || finish_called_) {
    return Action::kNone;
  }
  if (cancelled_ || !refused_.ok()) {
    finish_called_ = true;
    final_status_ = cancelled_ ? record_.CancellationStatus() : refused_;
    if (outputs_ != nullptr) {
      outputs_->FillFigures(&record_.figures);
    }
    return Action::kFinish;
  }
  message_.Clear();
  if (!started_sent_) {
    if (!outputs_->TakePrompt(&info_)) {
      return Action::kNone;
    }
    started_sent_ = true;
    write_in_flight_ = true;
    *message_.mutable_started() = std::move(info_);
    bytes_ = SerializeMessage(message_);
    return Action::kWrite;
  }
  auto* const choices = message_.mutable_delta()->mutable_choices();
  const bool ended = outputs_->Take(choices);
  if (ended && !outputs_->status().ok()) {
    finish_called_ = true;
    final_status_ = outputs_->status();
    outputs_->FillFigures(&record_.figures);
    outputs_->Cancel();
    return Action::kFinish;
  }
  if (!ended && choices->empty()) {
    return Action::kNone;
  }
  if (ended) {
    google::protobuf::RepeatedPtrField<v1::Choice> last = std::move(*choices);
    v1::GenerateStreamResponse::Finished* const finished = message_.mutable_finished();
    *finished->mutable_choices() = std::move(last);
    outputs_->FillUsage(finished->mutable_usage(), finished->mutable_timings());
    outputs_->FillFigures(&record_.figures);
    finish_called_ = true;
  } else {
    write_in_flight_ = true;
  }
  bytes_ = SerializeMessage(message_);
  return ended ? Action::kWriteAndFinish : Action::kWrite;
}

void GenerateStreamReactor::OnWriteDone(bool ok) {
  std::shared_ptr<GenerateStreamReactor> self;
  {
    MutexLock lock(&mutex_);
    self = self_;
    writes_->WriteEnded();
    write_in_flight_ = false;
    cancelled_ = cancelled_ || !ok;
  }
  if (!ok) {
    outputs_->Cancel();
  }
  MaybeWrite();
}

void GenerateStreamReactor::OnCancel() {
  std::shared_ptr<GenerateStreamReactor> self;
  {
    MutexLock lock(&mutex_);
    self = self_;
    cancelled_ = true;
    if (outputs_ != nullptr) {
      outputs_->Cancel();
    }
  }
  MaybeWrite();
}

void GenerateStreamReactor::OnDone() {
  writes_.reset();
  --*context_.active_calls;
  // The last reference may be this one: nothing of the object is touched afterwards.
  std::shared_ptr<GenerateStreamReactor> self;
  MutexLock lock(&mutex_);
  self = std::move(self_);
}

GenerateUnaryReactor::GenerateUnaryReactor(const GenerateContext& context,
                                           grpc::CallbackServerContext* call,
                                           grpc::ByteBuffer* response)
    : context_(context),
      call_(call),
      response_(response),
      record_(context.call_log, Rpc::kGenerate, call) {
  ++*context_.active_calls;
}

grpc::ServerUnaryReactor* GenerateUnaryReactor::Start(const GenerateContext& context,
                                                      grpc::CallbackServerContext* call,
                                                      const grpc::ByteBuffer& request,
                                                      grpc::ByteBuffer* response) {
  const std::shared_ptr<GenerateUnaryReactor> reactor(
      new GenerateUnaryReactor(context, call, response));
  const auto wire = std::make_shared<v1::GenerateRequest>();
  absl::Status status;
  {
    MutexLock lock(&reactor->mutex_);
    reactor->self_ = reactor;
    status = Receive(context, *call, request, &reactor->permit_, &reactor->record_, wire.get());
  }
  if (status.ok()) {
    status = context.tokenizing_pool->Run(PromptLength(*wire),
                                          [reactor, wire] { reactor->Resolve(*wire); });
  }
  if (!status.ok()) {
    reactor->Refuse(status);
  }
  return reactor.get();
}

void GenerateUnaryReactor::Resolve(const v1::GenerateRequest& wire) {
  {
    MutexLock lock(&mutex_);
    if (finish_called_) return;  // cancelled while the prompt waited
  }
  absl::StatusOr<GenerateCall> resolved = ResolveGenerateRequest(wire, context_.request);
  absl::Status status = resolved.status();
  {
    MutexLock lock(&mutex_);
    if (finish_called_) return;
    if (resolved.ok()) status = Submit(*std::move(resolved));
  }
  if (!status.ok()) Refuse(status);
}

absl::Status GenerateUnaryReactor::Submit(GenerateCall resolved) {
  return SubmitRequest(context_, *call_, std::move(resolved), TokenStream::Mode::kEndOnly, self_,
                       &outputs_, message_.mutable_info(), &record_);
}

void GenerateUnaryReactor::Refuse(const absl::Status& status) {
  if (ClaimFinish(status)) {
    Finish(ToGrpcStatus(status, context_.engine->RetryAfterSeconds(), call_));
  }
}

bool GenerateUnaryReactor::ClaimFinish(const absl::Status& status) {
  {
    MutexLock lock(&mutex_);
    if (std::exchange(finish_called_, true)) {
      return false;
    }
    if (outputs_ != nullptr) {
      outputs_->FillFigures(&record_.figures);
    }
  }
  context_.OnCallEnding(call_, status, &record_, &permit_);
  return true;
}

bool GenerateUnaryReactor::TakeOutput() {
  if (finish_called_ || !outputs_->TakePrompt(message_.mutable_info())) {
    return false;
  }
  return outputs_->Take(message_.mutable_choices());
}

void GenerateUnaryReactor::OnOutput() {
  std::string request_id;
  {
    MutexLock lock(&mutex_);
    if (!TakeOutput()) {
      return;
    }
    finish_called_ = true;
    request_id = message_.info().request_id();
    outputs_->FillFigures(&record_.figures);
    if (outputs_->status().ok()) {
      outputs_->FillUsage(message_.mutable_usage(), message_.mutable_timings());
      *response_ = SerializeMessage(message_);
    } else {
      outputs_->Cancel();
    }
  }
  context_.OnCallEnding(call_, outputs_->status(), &record_, &permit_);
  writes_ = context_.WatchWrites(call_, request_id);
  writes_->WriteStarted();
  Finish(ToGrpcStatus(outputs_->status(), context_.engine->RetryAfterSeconds(), call_));
}

void GenerateUnaryReactor::OnCancel() {
  std::shared_ptr<GenerateUnaryReactor> self;
  {
    MutexLock lock(&mutex_);
    self = self_;
  }
  const absl::Status status = record_.CancellationStatus();
  // First, so that nothing is submitted any more that would not be cancelled here.
  const bool claimed = ClaimFinish(status);
  {
    MutexLock lock(&mutex_);
    if (outputs_ != nullptr) {
      outputs_->Cancel();
    }
  }
  if (claimed) {
    Finish(ToGrpcStatus(status));
  }
}

void GenerateUnaryReactor::OnDone() {
  writes_.reset();
  --*context_.active_calls;
  std::shared_ptr<GenerateUnaryReactor> self;
  MutexLock lock(&mutex_);
  self = std::move(self_);
}

}  // namespace ferrite

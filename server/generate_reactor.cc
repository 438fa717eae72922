#include "server/generate_reactor.h"

#include "engine/status_macros.h"
#include "server/status_mapping.h"
#include "server/wire.h"

namespace ferrite {
namespace {

// gRPC's deadline is of the wall clock, the engine's of the monotonic one.
Clock::time_point EngineDeadline(const grpc::CallbackServerContext& call) {
  const auto deadline = call.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) {
    return Clock::time_point::max();
  }
  const auto left = deadline - std::chrono::system_clock::now();
  if (left > std::chrono::hours(24 * 365)) {
    return Clock::time_point::max();
  }
  return Clock::now() + left;
}

// Parses, resolves and submits what has been admitted. `info` is filled before the request is
// submitted, since output may come at once.
absl::Status SubmitRequest(const GenerateContext& context, const grpc::CallbackServerContext& call,
                           const grpc::ByteBuffer& bytes, std::shared_ptr<TokenStream> stream,
                           v1::PromptInfo* info) {
  const Clock::time_point received = Clock::now();
  RETURN_IF_ERROR(context.engine->CheckRoom());
  v1::GenerateRequest wire;
  RETURN_IF_ERROR(ParseMessage(bytes, &wire));
  ASSIGN_OR_RETURN(EngineRequest request, ResolveGenerateRequest(wire, context.request));
  request.received = received;
  request.deadline = EngineDeadline(call);
  info->set_request_id(request.id);
  info->set_model(context.request.model->name);
  info->set_prompt_tokens(static_cast<int32_t>(request.prompt.size()));
  *info->mutable_used() = UsedParams(request);
  return context.engine->Submit(std::move(request), std::move(stream));
}

void FillChoice(const OutputDelta& delta, v1::Choice* choice) {
  choice->set_index(0);
  choice->set_text(delta.text);
  choice->mutable_token_ids()->Assign(delta.token_ids.begin(), delta.token_ids.end());
}

v1::FinishReason ToWire(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kAborted:
      return v1::FINISH_REASON_ABORTED;
    case FinishReason::kNone:
      break;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

void FillEnd(const Completion& completion, v1::Choice* choice, v1::Usage* usage,
             v1::Timings* timings) {
  choice->set_finish_reason(ToWire(completion.reason));
  if (completion.reason == FinishReason::kStop) {
    if (completion.stop_string.empty()) {
      choice->mutable_stop()->set_token_id(completion.stop_token);
    } else {
      choice->mutable_stop()->set_stop_string(completion.stop_string);
    }
  }
  usage->set_prompt_tokens(completion.prompt_tokens);
  usage->set_completion_tokens(completion.completion_tokens);
  usage->set_total_tokens(completion.prompt_tokens + completion.completion_tokens);
  timings->set_queue_seconds(completion.queue_seconds);
  timings->set_time_to_first_token_seconds(completion.time_to_first_token_seconds);
  timings->set_total_seconds(completion.total_seconds);
}

}  // namespace

GenerateStreamReactor::GenerateStreamReactor(const GenerateContext& context,
                                             grpc::CallbackServerContext* call)
    : context_(context), call_(call) {
  ++*context_.active_calls;
  delta_.Reserve(OutputDelta::kUsualTokens, -1);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateStreamReactor::Start(
    const GenerateContext& context, grpc::CallbackServerContext* call,
    const grpc::ByteBuffer& request) {
  const std::shared_ptr<GenerateStreamReactor> reactor(new GenerateStreamReactor(context, call));
  reactor->self_ = reactor;
  if (absl::Status status = reactor->Submit(request); !status.ok()) {
    MutexLock lock(&reactor->mutex_);
    reactor->refused_ = std::move(status);
  }
  reactor->MaybeWrite();
  return reactor.get();
}

absl::Status GenerateStreamReactor::Submit(const grpc::ByteBuffer& bytes) {
  ASSIGN_OR_RETURN(permit_, context_.authenticator->Admit(*call_, CallCost::kGeneration));
  auto stream = std::make_shared<TokenStream>(TokenStream::Mode::kEveryOutput);
  stream->SetListener(self_);
  stream_ = stream;
  v1::PromptInfo info;
  // Holding the mutex keeps an OnOutput that comes at once from overtaking info_.
  MutexLock lock(&mutex_);
  RETURN_IF_ERROR(SubmitRequest(context_, *call_, bytes, std::move(stream), &info));
  info_ = std::move(info);
  return absl::OkStatus();
}

void GenerateStreamReactor::MaybeWrite() {
  Action action;
  {
    MutexLock lock(&mutex_);
    action = NextAction();
  }
  // Before the client can know: its next request must find the place free.
  if (action == Action::kWriteAndFinish || action == Action::kFinish) {
    permit_.reset();
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
    final_status_ = cancelled_ ? absl::CancelledError("the call was cancelled") : refused_;
    return Action::kFinish;
  }
  message_.Clear();
  if (!started_sent_) {
    started_sent_ = true;
    write_in_flight_ = true;
    *message_.mutable_started() = std::move(info_);
    bytes_ = SerializeMessage(message_);
    return Action::kWrite;
  }
  const bool ended = stream_->Take(&delta_);
  if (ended && !stream_->completion().status.ok()) {
    finish_called_ = true;
    final_status_ = stream_->completion().status;
    return Action::kFinish;
  }
  if (!ended && delta_.empty()) {
    return Action::kNone;
  }
  if (ended) {
    v1::GenerateStreamResponse::Finished* const finished = message_.mutable_finished();
    v1::Choice* const choice = finished->add_choices();
    FillChoice(delta_, choice);
    FillEnd(stream_->completion(), choice, finished->mutable_usage(), finished->mutable_timings());
    finish_called_ = true;
  } else {
    FillChoice(delta_, message_.mutable_delta()->add_choices());
    write_in_flight_ = true;
  }
  bytes_ = SerializeMessage(message_);
  return ended ? Action::kWriteAndFinish : Action::kWrite;
}

void GenerateStreamReactor::OnWriteDone(bool ok) {
  {
    MutexLock lock(&mutex_);
    write_in_flight_ = false;
    cancelled_ = cancelled_ || !ok;
  }
  if (!ok) {
    stream_->Cancel();
  }
  MaybeWrite();
}

void GenerateStreamReactor::OnCancel() {
  {
    MutexLock lock(&mutex_);
    cancelled_ = true;
  }
  if (stream_ != nullptr) {
    stream_->Cancel();
  }
  MaybeWrite();
}

void GenerateStreamReactor::OnDone() {
  --*context_.active_calls;
  // The last reference may be this one: nothing of the object is touched afterwards.
  const std::shared_ptr<GenerateStreamReactor> self = std::move(self_);
}

GenerateUnaryReactor::GenerateUnaryReactor(const GenerateContext& context,
                                           grpc::CallbackServerContext* call,
                                           grpc::ByteBuffer* response)
    : context_(context), call_(call), response_(response) {
  ++*context_.active_calls;
}

grpc::ServerUnaryReactor* GenerateUnaryReactor::Start(const GenerateContext& context,
                                                      grpc::CallbackServerContext* call,
                                                      const grpc::ByteBuffer& request,
                                                      grpc::ByteBuffer* response) {
  const std::shared_ptr<GenerateUnaryReactor> reactor(
      new GenerateUnaryReactor(context, call, response));
  reactor->self_ = reactor;
  if (const absl::Status status = reactor->Submit(request);
      !status.ok() && reactor->ClaimFinish()) {
    reactor->Finish(ToGrpcStatus(status, context.engine->RetryAfterSeconds(), call));
  }
  return reactor.get();
}

absl::Status GenerateUnaryReactor::Submit(const grpc::ByteBuffer& bytes) {
  ASSIGN_OR_RETURN(permit_, context_.authenticator->Admit(*call_, CallCost::kGeneration));
  stream_ = std::make_shared<TokenStream>(TokenStream::Mode::kEndOnly);
  stream_->SetListener(self_);
  return SubmitRequest(context_, *call_, bytes, stream_, &info_);
}

bool GenerateUnaryReactor::ClaimFinish() {
  {
    MutexLock lock(&mutex_);
    if (std::exchange(finish_called_, true)) {
      return false;
    }
  }
  permit_.reset();  // before the client can know: its next request must find the place free
  return true;
}

void GenerateUnaryReactor::OnOutput() {
  if (!ClaimFinish()) {
    return;
  }
  OutputDelta output;
  stream_->Take(&output);
  const Completion& completion = stream_->completion();
  if (completion.status.ok()) {
    v1::GenerateResponse response;
    *response.mutable_info() = std::move(info_);
    v1::Choice* const choice = response.add_choices();
    FillChoice(output, choice);
    FillEnd(completion, choice, response.mutable_usage(), response.mutable_timings());
    *response_ = SerializeMessage(response);
  }
  Finish(ToGrpcStatus(completion.status, context_.engine->RetryAfterSeconds(), call_));
}

void GenerateUnaryReactor::OnCancel() {
  if (stream_ != nullptr) {
    stream_->Cancel();
  }
  if (ClaimFinish()) {
    Finish(ToGrpcStatus(absl::CancelledError("the call was cancelled")));
  }
}

void GenerateUnaryReactor::OnDone() {
  --*context_.active_calls;
  const std::shared_ptr<GenerateUnaryReactor> self = std::move(self_);
}

}  // namespace ferrite

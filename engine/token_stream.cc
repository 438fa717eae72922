#include "engine/token_stream.h"

#include <utility>

namespace ferrite {

void OutputDelta::Reserve(int32_t num_tokens, int32_t num_logprobs) {
  text.reserve(size_t{4} * num_tokens);
  token_ids.reserve(num_tokens);
  if (num_logprobs >= 0) {
    logprobs.Reserve(num_tokens, num_logprobs);
  }
}

void OutputDelta::Clear() {
  text.clear();
  token_ids.clear();
  logprobs.Clear();
  prompt_logprobs.Clear();
  embedding.clear();
}

void TokenStream::Reserve(int32_t max_new_tokens, int32_t num_logprobs) {
  const int32_t tokens = mode_ == Mode::kEndOnly ? max_new_tokens : OutputDelta::kUsualTokens;
  MutexLock lock(&mutex_);
  pending_.Reserve(tokens, num_logprobs);
}

void TokenStream::SetListener(std::weak_ptr<Listener> listener) {
  MutexLock lock(&mutex_);
  listener_ = std::move(listener);
}

bool TokenStream::Take(OutputDelta* delta) {
  delta->Clear();
  MutexLock lock(&mutex_);
  std::swap(*delta, pending_);
  if (delta->empty() && !finished_) {
    armed_ = true;
  }
  return finished_;
}

bool TokenStream::ended() {
  MutexLock lock(&mutex_);
  return finished_;
}

bool TokenStream::Append(std::string_view text, TokenId token, const LogprobView* logprobs) {
  MutexLock lock(&mutex_);
  if (finished_) {
    return false;
  }
  pending_.text.append(text);
  pending_.token_ids.push_back(token);
  if (logprobs != nullptr) {
    pending_.logprobs.Append(logprobs->own, logprobs->top);
  }
  return mode_ == Mode::kEveryOutput && std::exchange(armed_, false);
}

bool TokenStream::AppendPromptLogprobs(LogprobList* prompt_logprobs) {
  MutexLock lock(&mutex_);
  if (finished_) {
    return false;
  }
  std::swap(pending_.prompt_logprobs, *prompt_logprobs);
  return mode_ == Mode::kEveryOutput && std::exchange(armed_, false);
}

bool TokenStream::Finish(std::string_view text, Completion completion,
                         std::span<const float> embedding) {
  MutexLock lock(&mutex_);
  if (finished_) {
    return false;
  }
  pending_.text.append(text);
  pending_.embedding.assign(embedding.begin(), embedding.end());
  completion_ = std::move(completion);
  finished_ = true;
  return std::exchange(armed_, false);
}

bool TokenStream::Fail(absl::Status status) {
  bool tell = false;
  {
    MutexLock lock(&mutex_);
    if (finished_) {
      return false;
    }
    completion_.status = std::move(status);
    finished_ = true;
    tell = std::exchange(armed_, false);
  }
  Cancel();
  if (tell) {
    Notify();
  }
  return true;
}

void TokenStream::Notify() {
  std::shared_ptr<Listener> listener;
  {
    MutexLock lock(&mutex_);
    listener = listener_.lock();
  }
  if (listener != nullptr) {
    listener->OnOutput();
  }
}

void TokenStream::RequestStop(StopRequest request) {
  StopRequest none = StopRequest::kNone;
  stop_request_.compare_exchange_strong(none, request, std::memory_order_acq_rel);
}

}  // namespace ferrite

#include "engine/token_stream.h"

#include <utility>

namespace ferrite {

void TokenStream::Reserve(int32_t max_new_tokens) {
  const int32_t tokens = mode_ == Mode::kEndOnly ? max_new_tokens : OutputDelta::kUsualTokens;
  MutexLock lock(&mutex_);
  pending_.Reserve(tokens);
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

bool TokenStream::Append(std::string_view text, TokenId token) {
  MutexLock lock(&mutex_);
  if (finished_) {
    return false;
  }
  pending_.text.append(text);
  pending_.token_ids.push_back(token);
  return mode_ == Mode::kEveryOutput && std::exchange(armed_, false);
}

bool TokenStream::Finish(std::string_view text, Completion completion) {
  MutexLock lock(&mutex_);
  if (finished_) {
    return false;
  }
  pending_.text.append(text);
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

#include "engine/request_queue.h"

#include <iterator>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/refusal.h"
#include "engine/status_macros.h"

namespace ferrite {

absl::Status RequestQueue::CheckRoom(int32_t requests, int64_t prompt_tokens) const {
  MutexLock lock(&mutex_);
  return CheckRoomLocked(requests, prompt_tokens);
}

absl::Status RequestQueue::CheckRoomLocked(int32_t requests, int64_t prompt_tokens) const {
  RETURN_IF_ERROR(closed_);
  if (waiting_requests_ + requests > limits_.max_waiting_requests) {
    const std::string these = requests == 1 ? "" : absl::StrCat(", this call has ", requests);
    return Refused(absl::ResourceExhaustedError(absl::StrCat(
                       "the queue is full: ", waiting_requests_, " requests wait", these,
                       ", and scheduler.max_waiting is ", limits_.max_waiting_requests)),
                   Refusal::kQueueRequests);
  }
  if (waiting_tokens_ + prompt_tokens > limits_.max_waiting_tokens) {
    return Refused(
        absl::ResourceExhaustedError(absl::StrCat(
            "the queue is full: ", waiting_tokens_, " prompt tokens wait, this request has ",
            prompt_tokens, ", and scheduler.max_waiting_tokens is ", limits_.max_waiting_tokens)),
        Refusal::kQueueTokens);
  }
  return absl::OkStatus();
}

absl::Status RequestQueue::Push(std::vector<std::unique_ptr<Sequence>>& sequences) {
  int64_t prompt_tokens = 0;
  for (const std::unique_ptr<Sequence>& sequence : sequences) {
    prompt_tokens += sequence->num_waiting_tokens();
  }
  const auto requests = static_cast<int32_t>(sequences.size());
  MutexLock lock(&mutex_);
  RETURN_IF_ERROR(CheckRoomLocked(requests, prompt_tokens));
  waiting_requests_ += requests;
  waiting_tokens_ += prompt_tokens;
  const bool was_empty = queue_.empty();
  queue_.insert(queue_.end(), std::make_move_iterator(sequences.begin()),
                std::make_move_iterator(sequences.end()));
  sequences.clear();
  if (was_empty) {
    pushed_.NotifyOne();
  }
  return absl::OkStatus();
}

bool RequestQueue::Drain(bool wait, std::vector<std::unique_ptr<Sequence>>* out) {
  MutexLock lock(&mutex_);
  while (wait && queue_.empty() && closed_.ok()) {
    pushed_.Wait(&mutex_);
  }
  out->insert(out->end(), std::make_move_iterator(queue_.begin()),
              std::make_move_iterator(queue_.end()));
  const bool open = closed_.ok() || !queue_.empty();
  queue_.clear();
  return open;
}

void RequestQueue::OnLeftWaiting(int64_t prompt_tokens) {
  MutexLock lock(&mutex_);
  --waiting_requests_;
  waiting_tokens_ -= prompt_tokens;
}

void RequestQueue::Close(absl::Status reason) {
  MutexLock lock(&mutex_);
  closed_.Update(reason);
  pushed_.NotifyAll();
}

int32_t RequestQueue::num_waiting() const {
  MutexLock lock(&mutex_);
  return waiting_requests_;
}

int64_t RequestQueue::num_waiting_tokens() const {
  MutexLock lock(&mutex_);
  return waiting_tokens_;
}

}  // namespace ferrite

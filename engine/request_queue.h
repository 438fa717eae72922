// The bounded queue between RPC threads and one worker.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "engine/mutex.h"
#include "engine/sequence.h"

namespace ferrite {

struct AdmissionLimits {
  int32_t max_waiting_requests = 256;
  int64_t max_waiting_tokens = 1'000'000;  // prompt tokens
};

// Thread-safe. A sequence counts as waiting from Push until the worker says that it has started or
// has been dropped, so the bounds cover those the scheduler holds back as well. Each counts as a
// request.
class RequestQueue {
 public:
  explicit RequestQueue(AdmissionLimits limits) : limits_(limits) {}

  // ResourceExhausted, naming the bound, if there is no room for this many requests with so many
  // prompt tokens together; the reason of Close once closed. CheckRoom only looks.
  absl::Status CheckRoom(int32_t requests, int64_t prompt_tokens) const;
  // Takes all the sequences if it returns OK, else none.
  absl::Status Push(std::vector<std::unique_ptr<Sequence>>& sequences);

  // --- the worker ---

  // Moves what was pushed to the end of `out`. If there is nothing and `wait`, blocks until there
  // is, or until the queue is closed. Returns false once it is closed and empty.
  bool Drain(bool wait, std::vector<std::unique_ptr<Sequence>>* out);
  // A request no longer waits.
  void OnLeftWaiting(int64_t prompt_tokens);

  // From now on CheckRoom and Push return `reason`, which is not OK. The first call counts.
  void Close(absl::Status reason);
  int32_t num_waiting() const;
  int64_t num_waiting_tokens() const;

 private:
  absl::Status CheckRoomLocked(int32_t requests, int64_t prompt_tokens) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const AdmissionLimits limits_;
  mutable Mutex mutex_;
  CondVar pushed_;
  std::vector<std::unique_ptr<Sequence>> queue_ ABSL_GUARDED_BY(mutex_);
  int32_t waiting_requests_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t waiting_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status closed_ ABSL_GUARDED_BY(mutex_);  // OK while open
};

}  // namespace ferrite

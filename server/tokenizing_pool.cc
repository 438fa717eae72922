#include "server/tokenizing_pool.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/refusal.h"
#include "engine/thread_name.h"

namespace ferrite {

TokenizingPool::TokenizingPool(int num_threads) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Work(); });
}

TokenizingPool::~TokenizingPool() {
  {
    MutexLock lock(&mutex_);
    closed_ = true;
    changed_.NotifyAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

int TokenizingPool::DefaultThreads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 2, 1, 4);
}

absl::Status TokenizingPool::Run(int64_t bytes, std::function<void()> job) {
  if (bytes <= kShortBytes) {
    job();
    return absl::OkStatus();
  }
  MutexLock lock(&mutex_);
  if (!waiting_.empty() && waiting_bytes_ + bytes > kMostWaitingBytes) {
    return Refused(absl::ResourceExhaustedError(absl::StrCat(
                       "texts of ", waiting_bytes_, " bytes wait to be tokenised, this call has ",
                       bytes, ", and at most ", kMostWaitingBytes, " may wait")),
                   Refusal::kQueueTokens);
  }
  waiting_.push_back({bytes, std::move(job)});
  waiting_bytes_ += bytes;
  changed_.NotifyOne();
  return absl::OkStatus();
}

void TokenizingPool::Work() {
  SetThreadName("ferrite-texts");
  while (true) {
    Job job;
    {
      MutexLock lock(&mutex_);
      while (waiting_.empty() && !closed_) changed_.Wait(&mutex_);
      if (waiting_.empty()) return;
      job = std::move(waiting_.front());
      waiting_.pop_front();
      waiting_bytes_ -= job.bytes;
    }
    job.run();
  }
}

}  // namespace ferrite

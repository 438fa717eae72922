// Threads that tokenise long texts, so that gRPC's own go on serving other calls meanwhile.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "engine/mutex.h"

namespace ferrite {

// One per server. Thread-safe.
class TokenizingPool {
 public:
  // What is no longer than this takes a millisecond or two, and is done at once.
  static constexpr int64_t kShortBytes = 16 << 10;
  // What may wait, so that a client that sends long texts cannot make the others' wait for minutes.
  static constexpr int64_t kMostWaitingBytes = 64 << 20;

  explicit TokenizingPool(int num_threads);
  // Runs what was taken, then joins.
  ~TokenizingPool();
  TokenizingPool(const TokenizingPool&) = delete;
  TokenizingPool& operator=(const TokenizingPool&) = delete;

  // As many threads as a server should have.
  static int DefaultThreads();

  // Runs `job`, whose text has so many bytes: before it returns if they are few, else on a thread
  // of the pool, in turn. ResourceExhausted, naming the bound, if too much waits; then `job` is not
  // run. A text that finds none waiting is taken however long it is.
  absl::Status Run(int64_t bytes, std::function<void()> job);

 private:
  struct Job {
    int64_t bytes;
    std::function<void()> run;
  };
  void Work();

  Mutex mutex_;
  CondVar changed_;
  std::deque<Job> waiting_ ABSL_GUARDED_BY(mutex_);
  int64_t waiting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;  // last: they use the rest
};

}  // namespace ferrite

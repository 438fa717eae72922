// A few threads that share one long job at a time.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/mutex.h"

namespace ferrite {

// The calling thread and num_threads - 1 others, fewer if the system refuses them. One thread at a
// time calls ForEach. Threads end on destruction.
class ThreadTeam {
 public:
  explicit ThreadTeam(int num_threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  // Calls piece(i) once for each i in [0, count), on any thread, lower ones first; returns when all
  // have returned. `piece` must not throw.
  void ForEach(int64_t count, absl::FunctionRef<void(int64_t)> piece);

 private:
  void WorkerMain();
  // Takes the next piece, with the mutex released while it runs.
  void TakeOne() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Mutex mutex_;
  CondVar work_or_stop_;
  CondVar all_done_;
  const absl::FunctionRef<void(int64_t)>* piece_ ABSL_GUARDED_BY(mutex_) = nullptr;
  int64_t count_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t unfinished_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> workers_;
};

}  // namespace ferrite

#include "cuda/thread_team.h"

#include <system_error>

#include "engine/thread_name.h"

namespace ferrite {

ThreadTeam::ThreadTeam(int num_threads) {
  try {
    for (int i = 1; i < num_threads; ++i) {
      workers_.emplace_back([this] { WorkerMain(); });
    }
  } catch (const std::system_error&) {
    // Those there are do the work.
  }
}

ThreadTeam::~ThreadTeam() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  work_or_stop_.NotifyAll();
  for (std::thread& worker : workers_) {
    worker.join();
  }
}

void ThreadTeam::ForEach(int64_t count, absl::FunctionRef<void(int64_t)> piece) {
  MutexLock lock(&mutex_);
  piece_ = &piece;
  count_ = count;
  next_ = 0;
  unfinished_ = count;
  if (count > 1) {
    work_or_stop_.NotifyAll();
  }
  while (next_ < count_) {
    TakeOne();
  }
  while (unfinished_ > 0) {
    all_done_.Wait(&mutex_);
  }
}

void ThreadTeam::TakeOne() {
  const int64_t index = next_++;
  const absl::FunctionRef<void(int64_t)> piece = *piece_;
  mutex_.Unlock();
  piece(index);
  mutex_.Lock();
  if (--unfinished_ == 0) {
    all_done_.NotifyOne();
  }
}

void ThreadTeam::WorkerMain() {
  SetThreadName("weight-reader");
  MutexLock lock(&mutex_);
  while (true) {
    while (!stopping_ && next_ == count_) {
      work_or_stop_.Wait(&mutex_);
    }
    if (stopping_) {
      return;
    }
    TakeOne();
  }
}

}  // namespace ferrite

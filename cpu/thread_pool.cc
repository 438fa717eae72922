#include "cpu/thread_pool.h"

#include <sched.h>

#include <algorithm>

#include "engine/thread_name.h"

namespace ferrite {
namespace {

constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kInside = kOpen - 1;
constexpr int kEpochShift = 32;
// Some tens of microseconds: longer than the gaps between the loops of one step.
constexpr int kSpins = 2000;
// A range is what is left over this many times the threads: long ones first and short ones last, so
// that a thread that is slower or late leaves its share to the others and all end together.
constexpr int64_t kShares = 2;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

int32_t NumAvailableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return std::max(1, CPU_COUNT(&set));
  }
  return std::max(1, static_cast<int32_t>(std::thread::hardware_concurrency()));
}

ThreadPool::ThreadPool(int32_t num_threads) {
  workers_.reserve(std::max(0, num_threads - 1));
  for (int32_t thread = 1; thread < num_threads; ++thread) {
    workers_.emplace_back([this, thread] { WorkerMain(thread); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stopping_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) {
    worker.join();
  }
}

void ThreadPool::Run(const Loop& loop) {
  loop_ = loop;
  next_.store(0, std::memory_order_relaxed);
  const uint64_t epoch = (state_.load(std::memory_order_relaxed) >> kEpochShift) + 1;
  state_.store(epoch << kEpochShift | kOpen, std::memory_order_seq_cst);
  // A worker counts itself as a sleeper before it looks at state_ for the last time, so either it
  // sees this loop or we see it asleep.
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  Work(0);
  state_.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (int spins = 0; (state_.load(std::memory_order_acquire) & kInside) != 0; ++spins) {
    spins < kSpins ? Pause() : std::this_thread::yield();
  }
}

void ThreadPool::Work(int32_t thread) {
  const int64_t shares = kShares * num_threads();
  int64_t begin = next_.load(std::memory_order_relaxed);
  while (begin < loop_.size) {
    const int64_t left = loop_.size - begin;
    const int64_t end = begin + std::min(left, std::max(loop_.grain, left / shares));
    if (next_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) {
      loop_.call(loop_.context, begin, end, thread);
      begin = next_.load(std::memory_order_relaxed);
    }
  }
}

void ThreadPool::WorkerMain(int32_t thread) {
  SetThreadName("ferrite-cpu");
  uint64_t seen_epoch = 0;
  for (;;) {
    uint64_t state = AwaitLoop(seen_epoch);
    if (stopping_.load(std::memory_order_acquire)) {
      return;
    }
    seen_epoch = state >> kEpochShift;
    bool entered = false;
    while ((state & kOpen) != 0 && state >> kEpochShift == seen_epoch && !entered) {
      entered = state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel);
    }
    if (entered) {
      Work(thread);
      state_.fetch_sub(1, std::memory_order_release);
    }
  }
}

// Returns the state of the first loop after `seen_epoch`, or any state once the pool is stopping.
uint64_t ThreadPool::AwaitLoop(uint64_t seen_epoch) {
  for (int spins = 0; spins < kSpins; ++spins) {
    const uint64_t state = state_.load(std::memory_order_acquire);
    if (state >> kEpochShift != seen_epoch || stopping_.load(std::memory_order_acquire)) {
      return state;
    }
    Pause();
  }
  std::unique_lock lock(mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  uint64_t state = 0;
  wake_.wait(lock, [&] {
    state = state_.load(std::memory_order_seq_cst);
    return state >> kEpochShift != seen_epoch || stopping_.load();
  });
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  return state;
}

}  // namespace ferrite

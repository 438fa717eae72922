#include "cpu/thread_pool.h"

#include <sched.h>

#include <algorithm>

#include "engine/thread_name.h"

namespace ferrite {
namespace {

constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kInside = kOpen - 1;
constexpr int kEpochShift = 32;
constexpr uint64_t kLowHalf = 0xFFFFFFFF;
// Some tens of microseconds: longer than the gaps between the loops of one step.
constexpr int kSpins = 2000;
// Threads that are done look through all shares, so there are not as many as in a large machine.
constexpr int32_t kMaxShares = 8;
// A range is what is left of a share over this many times its threads: long ones first and short
// ones last, so that a thread that is slower or late leaves work to the others and all end
// together.
constexpr int64_t kRangesPerThread = 4;

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

ThreadPool::ThreadPool(int32_t num_threads) : shares_(std::clamp(num_threads, 1, kMaxShares)) {
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

void ThreadPool::Run(Loop loop) {
  loop.num_shares = static_cast<int32_t>(
      std::min(static_cast<int64_t>(shares_.size()), std::max<int64_t>(1, loop.size / loop.grain)));
  loop_ = loop;
  const uint64_t epoch = ((state_.load(std::memory_order_relaxed) >> kEpochShift) + 1) & kLowHalf;
  state_.store(epoch << kEpochShift | kOpen, std::memory_order_seq_cst);
  // A worker counts itself as a sleeper before it looks at state_ for the last time, so either it
  // sees this loop or we see it asleep.
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  Work(0, epoch);
  state_.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (int spins = 0; (state_.load(std::memory_order_acquire) & kInside) != 0; ++spins) {
    spins < kSpins ? Pause() : std::this_thread::yield();
  }
}

void ThreadPool::Work(int32_t thread, uint64_t epoch) {
  const int32_t own = thread * loop_.num_shares / num_threads();
  for (int32_t i = 0; i < loop_.num_shares; ++i) {
    WorkOnShare((own + i) % loop_.num_shares, thread, epoch);
  }
}

void ThreadPool::WorkOnShare(int32_t share, int32_t thread, uint64_t epoch) {
  const int64_t first = loop_.size * share / loop_.num_shares;
  const int64_t size = loop_.size * (share + 1) / loop_.num_shares - first;
  const int64_t ranges = kRangesPerThread * ((num_threads() - 1) / loop_.num_shares + 1);
  std::atomic<uint64_t>& taken = shares_[share].taken;
  uint64_t value = taken.load(std::memory_order_relaxed);
  for (;;) {
    const int64_t begin = value >> kEpochShift == epoch ? value & kLowHalf : 0;
    const int64_t left = size - begin;
    if (left <= 0) {
      return;
    }
    const int64_t end = begin + std::min(left, std::max(loop_.grain, left / ranges));
    if (taken.compare_exchange_weak(value, epoch << kEpochShift | static_cast<uint64_t>(end),
                                    std::memory_order_relaxed)) {
      loop_.call(loop_.context, first + begin, first + end, thread);
      value = taken.load(std::memory_order_relaxed);
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
      Work(thread, seen_epoch);
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

// Threads for short data-parallel loops.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace ferrite {

// The CPUs this process may run on, as its affinity mask says; at least 1.
int32_t NumAvailableCpus();

// The calling thread and num_threads - 1 workers share each loop. Workers spin briefly after a
// loop, because the next one usually follows within microseconds, then sleep and cost nothing.
//
// One thread at a time may call ParallelFor (any one; it need not be the creating thread), and
// loops do not nest. Nothing is allocated after construction.
class ThreadPool {
 public:
  explicit ThreadPool(int32_t num_threads);
  ~ThreadPool();

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int32_t num_threads() const { return static_cast<int32_t>(workers_.size()) + 1; }

  // Calls fn(begin, end, thread) for ranges that cover [0, n) once, n < 2^32, each at least `grain`
  // long where what is left allows it; `thread` in [0, num_threads) is never in two calls at once.
  // A thread's next range usually begins where its last one ended. Runs inline when there is no
  // more than one grain. `fn` must not throw.
  template <typename Fn>
  void ParallelFor(int64_t n, int64_t grain, Fn&& fn) {
    if (n <= 0) {
      return;
    }
    if (n <= grain || workers_.empty()) {
      fn(int64_t{0}, n, int32_t{0});
      return;
    }
    using Callable = std::remove_reference_t<Fn>;
    Run({.call = [](void* context, int64_t begin, int64_t end,
                    int32_t thread) { (*static_cast<Callable*>(context))(begin, end, thread); },
         .context = const_cast<void*>(static_cast<const void*>(&fn)),
         .size = n,
         .grain = grain > 1 ? grain : 1});
  }

 private:
  struct Loop {
    void (*call)(void* context, int64_t begin, int64_t end, int32_t thread) = nullptr;
    void* context = nullptr;
    int64_t size = 0;
    int64_t grain = 1;
    int32_t num_shares = 1;
  };
  // A part of the loop that some threads begin with; the others take of it when theirs is done.
  struct alignas(64) Share {
    // epoch << 32 | how much of it is taken. Of another epoch: nothing is.
    std::atomic<uint64_t> taken{0};
  };

  void Run(Loop loop);
  void Work(int32_t thread, uint64_t epoch);
  void WorkOnShare(int32_t share, int32_t thread, uint64_t epoch);
  void WorkerMain(int32_t thread);
  uint64_t AwaitLoop(uint64_t seen_epoch);

  // Written only while no worker is inside a loop.
  Loop loop_;
  std::vector<Share> shares_;
  // epoch << 32 | open << 31 | workers inside. Workers enter only an open loop, so a worker that
  // wakes late finds it closed, and the caller waits only for those that entered.
  alignas(64) std::atomic<uint64_t> state_{0};
  std::atomic<int32_t> sleepers_{0};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

}  // namespace ferrite

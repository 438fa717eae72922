#include "cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <ctime>
#include <numeric>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace ferrite {
namespace {

TEST(ThreadPoolTest, CoversEveryIndexOnceWhateverTheSizes) {
  for (const int32_t threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (const int64_t n : {0, 1, 2, 7, 64, 1000}) {
      for (const int64_t grain : {1, 3, 64, 5000}) {
        std::vector<int> visits(n);
        pool.ParallelFor(n, grain, [&](int64_t begin, int64_t end, int32_t thread) {
          EXPECT_TRUE(thread >= 0 && thread < threads);
          for (int64_t i = begin; i < end; ++i) {
            ++visits[i];
          }
        });
        EXPECT_EQ(visits, std::vector<int>(n, 1)) << threads << " " << n << " " << grain;
      }
    }
  }
}

TEST(ThreadPoolTest, WritesAreVisibleAcrossManyLoops) {
  ThreadPool pool(4);
  std::vector<int64_t> values(256, 0);
  for (int loop = 0; loop < 5000; ++loop) {
    pool.ParallelFor(256, 1, [&](int64_t begin, int64_t end, int32_t) {
      for (int64_t i = begin; i < end; ++i) {
        ++values[(i + loop) % 256];  // another thread's element of the loop before
      }
    });
  }
  EXPECT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), 5000 * 256);
}

TEST(ThreadPoolTest, ThreadIndicesAreNeverInUseTwiceAtOnce) {
  ThreadPool pool(4);
  std::atomic<int> inside[4] = {};
  for (int loop = 0; loop < 200; ++loop) {
    pool.ParallelFor(64, 1, [&](int64_t, int64_t, int32_t thread) {
      EXPECT_EQ(inside[thread].fetch_add(1), 0);
      inside[thread].fetch_sub(1);
    });
  }
}

TEST(ThreadPoolTest, AThreadThatIsHeldUpLeavesTheRestOfItsPartToTheOthers) {
  ThreadPool pool(3);
  for (const int32_t late : {0, 1, 2}) {
    std::atomic<int64_t> done = 0;
    std::atomic<int64_t> held = 0;
    pool.ParallelFor(300, 1, [&](int64_t begin, int64_t end, int32_t thread) {
      if (thread == late && held.exchange(end - begin) == 0) {
        const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
        while (done < 300 - (end - begin) && std::chrono::steady_clock::now() < give_up) {
          std::this_thread::yield();
        }
        EXPECT_EQ(done, 300 - (end - begin));
        EXPECT_LE(end - begin, 300 / 3 / 2);
      }
      done += end - begin;
    });
    EXPECT_EQ(done, 300);
  }
}

TEST(ThreadPoolTest, TinyLoopsStayOnTheCallingThread) {
  ThreadPool pool(4);
  const std::thread::id caller = std::this_thread::get_id();
  for (int loop = 0; loop < 100; ++loop) {
    pool.ParallelFor(16, 16, [&](int64_t begin, int64_t end, int32_t thread) {
      EXPECT_EQ(std::this_thread::get_id(), caller);
      EXPECT_EQ(begin, 0);
      EXPECT_EQ(end, 16);
      EXPECT_EQ(thread, 0);
    });
  }
}

TEST(ThreadPoolTest, WorksForCallersOnDifferentThreadsAndAfterSleeping) {
  ThreadPool pool(3);
  for (int round = 0; round < 3; ++round) {
    std::atomic<int64_t> sum = 0;
    std::thread([&] {
      pool.ParallelFor(100, 1, [&](int64_t begin, int64_t end, int32_t) { sum += end - begin; });
    }).join();
    EXPECT_EQ(sum.load(), 100);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

TEST(ThreadPoolTest, IdleWorkersUseNoProcessorTime) {
  ThreadPool pool(4);
  pool.ParallelFor(100, 1, [](int64_t, int64_t, int32_t) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const std::clock_t before = std::clock();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_LT(static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC, 0.02);
}

TEST(ThreadPoolTest, CountsAtLeastOneCpu) {
  EXPECT_GE(NumAvailableCpus(), 1);
  EXPECT_LE(NumAvailableCpus(), static_cast<int32_t>(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace ferrite

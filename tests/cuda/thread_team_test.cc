#include "cuda/thread_team.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace ferrite {
namespace {

TEST(ThreadTeamTest, CallsEachPieceOnce) {
  for (const int num_threads : {0, 1, 2, 7}) {
    ThreadTeam team(num_threads);
    for (const int64_t count : {0, 1, 2, 100, 3, 1000}) {
      std::vector<std::atomic<int>> calls(count);
      team.ForEach(count, [&](int64_t i) { ++calls[i]; });
      for (const auto& call : calls) {
        ASSERT_EQ(call, 1) << num_threads << " threads, " << count << " pieces";
      }
    }
  }
}

// Two pieces that wait for each other end only if two threads run them.
TEST(ThreadTeamTest, RunsPiecesAtTheSameTime) {
  ThreadTeam team(2);
  std::atomic<int> arrived = 0;
  team.ForEach(2, [&](int64_t) {
    ++arrived;
    while (arrived < 2) {
      std::this_thread::yield();
    }
  });
  EXPECT_EQ(arrived, 2);
}

}  // namespace
}  // namespace ferrite

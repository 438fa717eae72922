#include "server/tokenizing_pool.h"

#include <gtest/gtest.h>

#include <future>
#include <string>
#include <vector>

#include "engine/refusal.h"

namespace ferrite {
namespace {

constexpr int64_t kLong = TokenizingPool::kShortBytes + 1;

// A job that keeps its thread until it is let go.
class Gate {
 public:
  std::function<void()> job() {
    return [this] {
      began_.set_value();
      go_on_.get_future().wait();
    };
  }
  void WaitUntilRunning() { began_.get_future().wait(); }
  void Open() { go_on_.set_value(); }

 private:
  std::promise<void> began_, go_on_;
};

TEST(TokenizingPoolTest, ShortTextsAreDoneAtOnceAndLongOnesElsewhere) {
  TokenizingPool pool(1);
  std::thread::id ran_on;
  ASSERT_TRUE(
      pool.Run(TokenizingPool::kShortBytes, [&] { ran_on = std::this_thread::get_id(); }).ok());
  EXPECT_EQ(ran_on, std::this_thread::get_id());
  std::promise<std::thread::id> other;
  ASSERT_TRUE(pool.Run(kLong, [&] { other.set_value(std::this_thread::get_id()); }).ok());
  EXPECT_NE(other.get_future().get(), std::this_thread::get_id());
}

TEST(TokenizingPoolTest, RunsInTurnAndShortTextsDoNotWait) {
  Gate gate;
  std::string order;
  {
    TokenizingPool pool(1);
    ASSERT_TRUE(pool.Run(kLong, gate.job()).ok());
    gate.WaitUntilRunning();
    for (const char name : {'a', 'b', 'c'}) {
      ASSERT_TRUE(pool.Run(kLong, [&order, name] { order += name; }).ok());
    }
    bool ran = false;
    ASSERT_TRUE(pool.Run(1, [&] { ran = true; }).ok());
    EXPECT_TRUE(ran);
    EXPECT_EQ(order, "");
    gate.Open();
  }
  EXPECT_EQ(order, "abc") << "the end waits for what was taken";
}

TEST(TokenizingPoolTest, RefusesWhatWouldMakeTooMuchWait) {
  Gate gate;
  int ran = 0;
  {
    TokenizingPool pool(1);
    ASSERT_TRUE(pool.Run(TokenizingPool::kMostWaitingBytes, gate.job()).ok());
    gate.WaitUntilRunning();
    const auto count = [&] { ++ran; };
    ASSERT_TRUE(pool.Run(TokenizingPool::kMostWaitingBytes - kLong, count).ok());
    ASSERT_TRUE(pool.Run(kLong, count).ok()) << "what runs does not wait";
    const absl::Status full = pool.Run(kLong, count);
    EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(full.message(),
              "texts of 67108864 bytes wait to be tokenised, this call has 16385, and at most "
              "67108864 may wait");
    EXPECT_EQ(RefusalOf(full), Refusal::kQueueTokens);
    EXPECT_TRUE(pool.Run(1, count).ok());
    gate.Open();
  }
  EXPECT_EQ(ran, 3);
}

TEST(TokenizingPoolTest, TakesAnyTextWhenNoneWaits) {
  Gate gate;
  TokenizingPool pool(1);
  ASSERT_TRUE(pool.Run(kLong, gate.job()).ok());
  gate.WaitUntilRunning();
  EXPECT_TRUE(pool.Run(2 * TokenizingPool::kMostWaitingBytes, [] {}).ok());
  EXPECT_FALSE(pool.Run(kLong, [] {}).ok());
  gate.Open();
}

}  // namespace
}  // namespace ferrite

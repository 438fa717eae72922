#include "server/log_limiter.h"

#include <gtest/gtest.h>

namespace ferrite {
namespace {

TEST(LogLimiterTest, LetsOneThroughInItsTimeAndCountsTheOthers) {
  LogLimiter limiter(10);
  const Clock::time_point start = Clock::now();
  const auto at = [&](int seconds) { return start + std::chrono::seconds(seconds); };
  EXPECT_EQ(limiter.Admit(at(0)), 0u);
  EXPECT_EQ(limiter.Admit(at(1)), std::nullopt);
  EXPECT_EQ(limiter.Admit(at(9)), std::nullopt);
  EXPECT_EQ(limiter.Admit(at(10)), 2u);
  EXPECT_EQ(limiter.Admit(at(11)), std::nullopt);
  EXPECT_EQ(limiter.Admit(at(100)), 1u);
  EXPECT_EQ(limiter.Admit(at(200)), 0u);
}

}  // namespace
}  // namespace ferrite

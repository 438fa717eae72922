#include "client/retry.h"

#include <gtest/gtest.h>

#include "tests/client/fake_server.h"

namespace ferrite {
namespace {

using namespace std::chrono_literals;

TEST(RetryTest, TakesTheAdviceOfARefusalAlone) {
  EXPECT_EQ(RetryAdvice(RefusedFor(1234ms)), 1234ms);
  EXPECT_EQ(RetryAdvice(RefusedFor(0ms)), 0ms);
  EXPECT_EQ(RetryAdvice(RefusedFor(60'000ms)), 60'000ms);
  EXPECT_EQ(RetryAdvice(RefusedFor(60'001ms)), std::nullopt);
  EXPECT_EQ(RetryAdvice(RefusedFor(-1ms)), std::nullopt);
  EXPECT_EQ(RetryAdvice(RefusedFor(std::chrono::hours(1'000'000'000))), std::nullopt);
  EXPECT_EQ(RetryAdvice(grpc::Status::OK), std::nullopt);
  const std::string details = RefusedFor(5ms).error_details();
  EXPECT_EQ(RetryAdvice({grpc::StatusCode::INTERNAL, "x", details}), std::nullopt);
  for (const std::string& bad : {std::string(), std::string("\xff\xff"), details.substr(0, 9)}) {
    EXPECT_EQ(RetryAdvice({grpc::StatusCode::RESOURCE_EXHAUSTED, "x", bad}), std::nullopt);
  }
}

TEST(RetryTest, PausesDoubleUpToABoundAndNeverFallBelowTheAdvice) {
  std::minstd_rand random(7);
  const auto expect = [&](std::chrono::milliseconds advice, int32_t tries,
                          std::chrono::milliseconds least) {
    for (int i = 0; i < 100; ++i) {
      const auto pause = RetryPause(advice, tries, &random);
      EXPECT_GE(pause, least) << advice.count() << " " << tries;
      EXPECT_LE(pause, least * 5 / 4) << advice.count() << " " << tries;
    }
  };
  expect(100ms, 1, 100ms);
  expect(100ms, 4, 800ms);
  expect(100ms, 9, 6400ms);
  expect(30'000ms, 9, 30'000ms);
  expect(0ms, 1, 1ms);
}

}  // namespace
}  // namespace ferrite

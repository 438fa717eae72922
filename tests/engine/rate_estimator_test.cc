#include "engine/rate_estimator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace ferrite {
namespace {

// A worker whose steps take 10 ms and 0.1 ms a token, run one at a time on a clock of its own.
class Worker {
 public:
  explicit Worker(double scatter = 0) : scatter_(scatter) {}

  void Step(int32_t tokens, int32_t prompt_tokens) {
    estimator.OnLaunched(now, tokens, prompt_tokens);
    now += Seconds(0.010 + 1e-4 * tokens + scatter_ * (uniform_(random_) - 0.5));
    estimator.OnCompleted(now);
  }
  void Idle(double seconds) { now += Seconds(seconds); }

  static Clock::duration Seconds(double seconds) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }

  RateEstimator estimator;
  Clock::time_point now{std::chrono::hours(1)};

 private:
  const double scatter_;
  std::mt19937 random_{7};
  std::uniform_real_distribution<double> uniform_;
};

TEST(RateEstimatorTest, KnowsNothingAtFirst) {
  const StepRates rates = RateEstimator().rates();
  EXPECT_FALSE(rates.known());
  EXPECT_EQ(SecondsToServe(rates, {100, 100, 100000, 1, 1}, 1000, 1000), 0);
}

TEST(RateEstimatorTest, FindsWhatStepsAndTokensCost) {
  Worker worker;
  for (int i = 0; i < 20; ++i) {
    worker.Step(100 + i, 100);
    for (int j = 0; j < 5; ++j) worker.Step(4, 0);
  }
  const StepRates rates = worker.estimator.rates();
  EXPECT_NEAR(rates.base_seconds, 0.010, 1e-6);
  EXPECT_NEAR(rates.token_seconds, 1e-4, 1e-8);
  EXPECT_TRUE(rates.decodes_seen);
}

TEST(RateEstimatorTest, RemembersPromptsThroughLongDecoding) {
  Worker worker;
  worker.Step(500, 500);
  for (int j = 0; j < 100000; ++j) worker.Step(8, 0);
  EXPECT_NEAR(worker.estimator.rates().token_seconds, 1e-4, 1e-8);
}

TEST(RateEstimatorTest, DecodesAloneSayNothingOfPrompts) {
  Worker worker;
  for (int j = 0; j < 10; ++j) worker.Step(8, 0);
  EXPECT_EQ(worker.estimator.rates().token_seconds, 0);
  EXPECT_NEAR(worker.estimator.rates().base_seconds, 0.0108, 1e-6);
}

TEST(RateEstimatorTest, ShortPromptsWithinTheScatterMakeLongOnesNoDearer) {
  Worker worker(0.004);
  for (int i = 0; i < 200; ++i) {
    worker.Step(3, 2);
    worker.Step(1, 0);
  }
  // Two tokens cost 0.2 ms; a naive slope over a scatter of 1 ms could be 5 times too steep.
  EXPECT_LE(worker.estimator.rates().token_seconds, 1.5e-4);
}

TEST(RateEstimatorTest, PromptsAloneTellOfSteps) {
  Worker worker;
  for (int i = 0; i < 10; ++i) worker.Step(400, 400);
  const StepRates rates = worker.estimator.rates();
  EXPECT_NEAR(rates.base_seconds, 0.050, 1e-6);
  EXPECT_FALSE(rates.decodes_seen);
  EXPECT_NEAR(SecondsToServe(rates, {0, 0, 0, 8, 400}, 800, 1000), 0.100, 1e-6)
      << "two steps; what decoding costs is not known";
}

TEST(RateEstimatorTest, FollowsAWorkerThatBecomesSlower) {
  Worker worker;
  for (int i = 0; i < 100; ++i) worker.Step(1, 0);
  for (int i = 0; i < 100; ++i) {
    worker.estimator.OnLaunched(worker.now, 1, 0);
    worker.Idle(0.5);
    worker.estimator.OnCompleted(worker.now);
  }
  EXPECT_NEAR(worker.estimator.rates().base_seconds, 0.5, 0.01);
}

TEST(RateEstimatorTest, StepsThatOverlapTakeWhatTheyAdd) {
  RateEstimator estimator;
  Clock::time_point now{std::chrono::hours(1)};
  estimator.OnLaunched(now, 1, 0);
  for (int i = 0; i < 50; ++i) {
    estimator.OnLaunched(now, 1, 0);  // while the one before runs
    now += std::chrono::milliseconds(20);
    estimator.OnCompleted(now);
  }
  EXPECT_NEAR(estimator.rates().base_seconds, 0.020, 1e-9);
}

TEST(RateEstimatorTest, IdleTimeIsNoWork) {
  Worker worker;
  for (int i = 0; i < 50; ++i) {
    for (int j = 0; j < 10; ++j) worker.Step(1, 0);
    worker.estimator.OnEnded();
    worker.Idle(3600);
  }
  worker.Step(1, 0);
  EXPECT_NEAR(worker.estimator.rates().base_seconds, 0.0101, 1e-6);
  EXPECT_NEAR(worker.estimator.rates().finish_seconds, 0.101, 1e-6);
}

TEST(RateEstimatorTest, EndsOfOneStepShareItsTime) {
  Worker worker;
  for (int i = 0; i < 50; ++i) {
    for (int j = 0; j < 10; ++j) worker.Step(4, 0);
    for (int j = 0; j < 4; ++j) worker.estimator.OnEnded();
  }
  worker.Step(4, 0);
  EXPECT_NEAR(worker.estimator.rates().finish_seconds, 0.104 / 4, 1e-6);
}

TEST(SecondsToServeTest, CountsTurnPromptAndOutput) {
  StepRates rates;
  rates.base_seconds = 0.010;
  rates.token_seconds = 0.0001;
  rates.finish_seconds = 0.5;
  rates.decodes_seen = true;
  // Alone: one step for 100 tokens, then 9 steps of one token.
  EXPECT_NEAR(SecondsToServe(rates, {0, 0, 0, 8, 512}, 100, 10), 0.020 + 9 * 0.0101, 1e-9);
  // An embedding: three steps for 1200 tokens and nothing after.
  EXPECT_NEAR(SecondsToServe(rates, {0, 0, 0, 8, 512}, 1200, 0), 0.030 + 0.120, 1e-9);
  // Beside three others, with a free slot.
  EXPECT_NEAR(SecondsToServe(rates, {3, 0, 0, 8, 512}, 100, 10), 0.0103 + 0.010 + 9 * 0.0104, 1e-9);
  // A prompt of 1,000 tokens beside 32 others in steps of 256: five steps, since 224 are left.
  EXPECT_NEAR(SecondsToServe(rates, {32, 0, 0, 64, 256}, 1000, 1), 5 * 0.0132 + 0.1, 1e-9);
  // Behind 2000 prompt tokens that wait.
  EXPECT_NEAR(SecondsToServe(rates, {0, 2, 2000, 8, 512}, 100, 1), 0.200 + 0.020, 1e-9);
  // All slots taken and two in front: the third end is its turn.
  const Backlog full = {8, 2, 0, 8, 512};
  EXPECT_NEAR(SecondsUntilSlot(rates, full), 1.5, 1e-9);
  EXPECT_NEAR(SecondsToServe(rates, full, 100, 2), 1.5 + 0.0108 + 0.010 + 0.0108, 1e-9);
  EXPECT_EQ(SecondsUntilSlot(rates, {7, 0, 0, 8, 512}), 0);
  EXPECT_NEAR(SecondsUntilSlot(rates, {7, 1, 0, 8, 512}), 0.5, 1e-9);
}

}  // namespace
}  // namespace ferrite

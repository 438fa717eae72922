#include "engine/worker_stats.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "engine/tokenizer/tokenizer.h"

namespace ferrite {
namespace {

using ::testing::ElementsAre;

constexpr double kNanosecond = 1e-9;  // what the clock cannot tell apart

Clock::time_point At(double seconds) {
  return Clock::time_point(std::chrono::hours(1)) +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

Batch BatchOf(std::vector<int32_t> lengths) {
  Batch batch;
  batch.Clear();
  for (const int32_t length : lengths) {
    batch.positions.resize(batch.positions.size() + length);
    batch.cu_seqlens.push_back(batch.num_tokens());
    batch.seq_slots.push_back(SeqSlot{batch.num_sequences()});
  }
  return batch;
}

StepResult Step(bool replayed) {
  StepResult result;
  result.replayed = replayed;
  return result;
}

// The index of the only range that has counts, or -1.
int OnlyRange(const Histogram& histogram) {
  const HistogramSnapshot snapshot = histogram.snapshot();
  int found = -1;
  for (size_t i = 0; i < snapshot.counts.size(); ++i) {
    if (snapshot.counts[i] > 0) {
      found = found == -1 ? static_cast<int>(i) : -2;
    }
  }
  return found;
}

class WorkerStatsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::Load(FERRITE_SOURCE_DIR "/models/stories260k");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  // Received at second 0; ends by its length, or token 2.
  std::unique_ptr<Sequence> MakeSequence(int32_t prompt_tokens, int32_t max_new_tokens,
                                         uint32_t sample_index = 0) {
    EngineRequest request;
    request.prompt.assign(prompt_tokens, 300);
    request.max_new_tokens = max_new_tokens;
    request.received = At(0);
    request.sampling.end_token_ids = {2};
    request.sampling.sample_index = sample_index;
    return std::make_unique<Sequence>(std::move(request), *tokenizer_, 16,
                                      std::make_shared<TokenStream>(TokenStream::Mode::kEndOnly));
  }

  void Token(Sequence* sequence, TokenId token, double seconds) {
    stats_.OnToken(*sequence, At(seconds));
    (void)sequence->AcceptToken(token, nullptr, At(seconds));
    if (sequence->finished()) {
      stats_.OnFinished(*sequence);
    }
  }

  uint64_t Finished(RequestEnd end) const {
    return stats_.finished[static_cast<size_t>(end)].value();
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  WorkerStats stats_;
};

TEST(HistogramTest, CountsEachValueInTheRangeThatEndsWithIt) {
  static constexpr std::array<double, 3> kBounds = {1, 2, 5};
  Histogram histogram(kBounds);
  for (const double value : {-1.0, 1.0, 1.5, 2.0, 2.5, 5.0, 5.1, 100.0}) {
    histogram.Observe(value);
  }
  histogram.Observe(3, 10);
  const HistogramSnapshot snapshot = histogram.snapshot();
  EXPECT_THAT(snapshot.counts, ElementsAre(2, 2, 12, 2));
  EXPECT_EQ(snapshot.count(), 18u);
  EXPECT_DOUBLE_EQ(snapshot.sum, 146.1);
}

template <size_t N>
void ExpectGoodBounds(const std::array<double, N>& bounds) {
  static_assert(N <= Histogram::kMaxBounds);
  EXPECT_TRUE(std::is_sorted(bounds.begin(), bounds.end(), std::less_equal<>()));
  EXPECT_GT(bounds[0], 0);
}

TEST(HistogramTest, BoundsRiseAndCoverWhatIsMeasured) {
  ExpectGoodBounds(kLatencyBounds);
  ExpectGoodBounds(kDurationBounds);
  ExpectGoodBounds(kTokenGapBounds);
  ExpectGoodBounds(kStepBounds);
  ExpectGoodBounds(kTokenBounds);
  EXPECT_EQ(kLatencyBounds.front(), 0.001);
  EXPECT_EQ(kLatencyBounds.back(), 160);
  EXPECT_EQ(kTokenGapBounds.front(), 0.0005);
}

TEST(StepPhaseTest, GoesByTheSequencesOfTheStep) {
  EXPECT_EQ(PhaseOf(BatchOf({1, 1, 1})), StepPhase::kDecode);
  EXPECT_EQ(PhaseOf(BatchOf({1, 7})), StepPhase::kMixed);
  EXPECT_EQ(PhaseOf(BatchOf({7, 2})), StepPhase::kPrefill);
}

TEST_F(WorkerStatsTest, AStepTakesWhatItKeepsTheDeviceFor) {
  // The second is launched while the first runs, and begins at second 3.
  stats_.OnLaunched(BatchOf({8}), At(1));
  stats_.OnLaunched(BatchOf({1, 1}), At(2));
  stats_.OnCompleted(Step(false), At(3));
  stats_.OnLaunched(BatchOf({1, 9}), At(3.5));
  stats_.OnCompleted(Step(true), At(3.75));
  stats_.OnCompleted(Step(false), At(4.75));
  stats_.OnLaunched(BatchOf({1}), At(10));
  stats_.OnCompleted(Step(true), At(10.5));
  const auto seconds = [this](StepPhase phase) {
    return stats_.step_seconds[static_cast<size_t>(phase)].snapshot();
  };
  EXPECT_NEAR(seconds(StepPhase::kPrefill).sum, 2, kNanosecond);
  EXPECT_NEAR(seconds(StepPhase::kDecode).sum, 0.75 + 0.5, kNanosecond);
  EXPECT_EQ(seconds(StepPhase::kDecode).count(), 2u);
  EXPECT_NEAR(seconds(StepPhase::kMixed).sum, 1, kNanosecond);
  EXPECT_EQ(stats_.step_tokens.snapshot().count(), 4u);
  EXPECT_EQ(stats_.step_tokens.snapshot().sum, 8 + 2 + 10 + 1);
  EXPECT_EQ(stats_.graph_steps.value(), 2u);
  EXPECT_EQ(stats_.eager_steps.value(), 2u);
}

TEST_F(WorkerStatsTest, TimesTheFirstTokenAndTheGapsBetweenTheRest) {
  const auto a = MakeSequence(5, 3);
  const auto b = MakeSequence(5, 100);
  for (Sequence* sequence : {a.get(), b.get()}) {
    sequence->MarkStarted(0, At(0.25));
    stats_.OnLeftWaiting(*sequence);
    Token(sequence, 300, 0.75);
  }
  Token(a.get(), 300, 1.0);
  Token(b.get(), 300, 1.0);
  Token(a.get(), 300, 1.125);
  Token(b.get(), 2, 2.0);
  stats_.OnHandedOut();
  EXPECT_EQ(stats_.queue_seconds.snapshot().count(), 2u);
  EXPECT_NEAR(stats_.queue_seconds.snapshot().sum, 0.5, kNanosecond);
  EXPECT_EQ(stats_.first_token_seconds.snapshot().count(), 2u);
  EXPECT_NEAR(stats_.first_token_seconds.snapshot().sum, 1.5, kNanosecond);
  EXPECT_EQ(stats_.token_gap_seconds.snapshot().count(), 4u);
  EXPECT_NEAR(stats_.token_gap_seconds.snapshot().sum, 0.25 + 0.25 + 0.125 + 1, kNanosecond);
  EXPECT_EQ(stats_.generation_tokens.value(), 6u);
  EXPECT_EQ(Finished(RequestEnd::kLength), 1u);
  EXPECT_EQ(Finished(RequestEnd::kStop), 1u);
  EXPECT_NEAR(stats_.request_seconds.snapshot().sum, 1.125 + 2.0, kNanosecond);
  EXPECT_EQ(stats_.request_generation_tokens.snapshot().count(), 2u);
  EXPECT_EQ(stats_.request_generation_tokens.snapshot().sum, 6);
}

TEST_F(WorkerStatsTest, CountsAPromptOnceForItsSamples) {
  for (const uint32_t sample : {0u, 1u, 2u}) {
    const auto sequence = MakeSequence(7, 3, sample);
    sequence->MarkStarted(0, At(1));
    stats_.OnLeftWaiting(*sequence);
  }
  EXPECT_EQ(stats_.prompt_tokens.value(), 7u);
  EXPECT_EQ(stats_.request_prompt_tokens.snapshot().count(), 1u);
  EXPECT_EQ(stats_.queue_seconds.snapshot().count(), 3u);
}

TEST_F(WorkerStatsTest, WhatEndsInTheQueueHasWaitedAndComputedNothing) {
  const auto sequence = MakeSequence(7, 3);
  (void)sequence->EndWith(absl::DeadlineExceededError("late"), FinishReason::kNone, At(4));
  stats_.OnFinished(*sequence);
  stats_.OnLeftWaiting(*sequence);
  EXPECT_NEAR(stats_.queue_seconds.snapshot().sum, 4, kNanosecond);
  EXPECT_EQ(stats_.prompt_tokens.value(), 0u);
  EXPECT_EQ(Finished(RequestEnd::kDeadline), 1u);
}

TEST_F(WorkerStatsTest, TellsTheEndsApart) {
  const std::pair<absl::Status, RequestEnd> ends[] = {
      {absl::CancelledError(""), RequestEnd::kCancelled},
      {absl::DeadlineExceededError(""), RequestEnd::kDeadline},
      {absl::InternalError(""), RequestEnd::kFailed},
      {absl::UnavailableError(""), RequestEnd::kFailed}};
  for (const auto& [status, end] : ends) {
    const auto sequence = MakeSequence(1, 1);
    (void)sequence->EndWith(status, FinishReason::kNone, At(1));
    EXPECT_EQ(EndOf(*sequence), end) << status;
  }
  const auto aborted = MakeSequence(1, 1);
  (void)aborted->EndWith(absl::OkStatus(), FinishReason::kAborted, At(1));
  EXPECT_EQ(EndOf(*aborted), RequestEnd::kAborted);
}

TEST_F(WorkerStatsTest, AValueFallsIntoTheRangeOfItsSize) {
  const auto sequence = MakeSequence(5, 100);
  sequence->MarkStarted(0, At(0));
  stats_.OnLeftWaiting(*sequence);
  Token(sequence.get(), 300, 1);
  Token(sequence.get(), 300, 1.0033);  // a step of a fast GPU
  stats_.OnHandedOut();
  EXPECT_EQ(OnlyRange(stats_.token_gap_seconds), 4);      // 3 to 4 ms
  EXPECT_EQ(OnlyRange(stats_.request_prompt_tokens), 3);  // 5 to 8 tokens
}

}  // namespace
}  // namespace ferrite

#include "engine/logit_adjuster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace ferrite {
namespace {

using testing::ElementsAre;
using testing::FloatEq;

constexpr float kBarred = -std::numeric_limits<float>::infinity();

TokenCounts Counts(const std::vector<TokenId>& prompt, const std::vector<TokenId>& output) {
  std::vector<TokenId> tokens = prompt;
  tokens.insert(tokens.end(), output.begin(), output.end());
  TokenCounts counts;
  counts.Reset(tokens, static_cast<int32_t>(prompt.size()));
  return counts;
}

std::vector<float> Adjusted(const SamplingParams& params, const TokenCounts& counts,
                            std::vector<float> logits) {
  AdjustLogits(params, counts, logits);
  return logits;
}

TEST(LogitAdjusterTest, RepetitionLooksAtPromptAndOutputAndMovesEitherSignDown) {
  const TokenCounts counts = Counts({0, 2, 2}, {1, 1});
  EXPECT_THAT(Adjusted({.repetition_penalty = 2}, counts, {3, -3, -1, 5, -5}),
              ElementsAre(1.5f, -6, -2, 5, -5));
  EXPECT_THAT(Adjusted({.repetition_penalty = 0.5f}, counts, {3, -3, 0, 5, -5}),
              ElementsAre(6, -1.5f, 0, 5, -5));
}

TEST(LogitAdjusterTest, FrequencyAndPresenceLookAtTheOutputAlone) {
  const TokenCounts counts = Counts({0, 2, 2}, {1, 1, 2});
  EXPECT_THAT(Adjusted({.frequency_penalty = 0.5f}, counts, {1, 1, 1, 1}),
              ElementsAre(1, 0, 0.5f, 1));
  EXPECT_THAT(Adjusted({.presence_penalty = 0.25f}, counts, {1, 1, 1, 1}),
              ElementsAre(1, 0.75f, 0.75f, 1));
  EXPECT_THAT(Adjusted({.frequency_penalty = -1, .presence_penalty = -2}, counts, {0, 0, 0, 0}),
              ElementsAre(0, 4, 3, 0));
}

TEST(LogitAdjusterTest, RepetitionComesBeforeTheOthersAndBiasLast) {
  const SamplingParams params{.repetition_penalty = 2,
                              .frequency_penalty = 1,
                              .presence_penalty = 0.5f,
                              .logit_bias = {{.id = 1, .bias = 10}, {.id = 2, .bias = -1}}};
  EXPECT_THAT(Adjusted(params, Counts({}, {1}), {1, 8, 3}),
              ElementsAre(1, FloatEq(8.0f / 2 - 1.5f + 10), 2));
}

TEST(LogitAdjusterTest, BarsWhatIsBannedOrNotAllowed) {
  EXPECT_THAT(Adjusted({.banned_token_ids = {0, 3}}, {}, {1, 2, 3, 4}),
              ElementsAre(kBarred, 2, 3, kBarred));
  EXPECT_THAT(Adjusted({.allowed_token_ids = {1, 2}}, {}, {1, 2, 3, 4}),
              ElementsAre(kBarred, 2, 3, kBarred));
  EXPECT_THAT(Adjusted({.logit_bias = {{.id = 1, .bias = 5}},
                        .allowed_token_ids = {1, 3},
                        .banned_token_ids = {1}},
                       {}, {1, 2, 3, 4}),
              ElementsAre(kBarred, kBarred, kBarred, 4));
}

TEST(LogitAdjusterTest, PassesOverIdsThatAreNotThere) {
  const SamplingParams params{
      .presence_penalty = 1, .logit_bias = {{.id = 9, .bias = 5}}, .banned_token_ids = {-1, 7}};
  EXPECT_THAT(Adjusted(params, Counts({5}, {6, -2}), {1, 2}), ElementsAre(1, 2));
}

TEST(TokenCountsTest, CountsWhatIsAddedAndForgetsOnReset) {
  TokenCounts counts = Counts({4}, {2});
  counts.AddOutput(2);
  counts.AddOutput(4);
  const SamplingParams params{.frequency_penalty = 1};
  EXPECT_THAT(Adjusted(params, counts, {0, 0, 0, 0, 0}), ElementsAre(0, 0, -2, 0, -1));
  counts.Reset(std::vector<TokenId>{1}, 0);
  EXPECT_THAT(Adjusted(params, counts, {0, 0, 0, 0, 0}), ElementsAre(0, -1, 0, 0, 0));
}

}  // namespace
}  // namespace ferrite

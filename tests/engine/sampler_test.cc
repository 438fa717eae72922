#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "engine/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ferrite {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TokenId SampleOnce(std::vector<float> logits, const SamplingParams& params, int32_t index = 0) {
  Sampler sampler(static_cast<int32_t>(logits.size()));
  return sampler.Sample(logits, params, index);
}

std::vector<float> RandomLogits(int size, double deviation, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(0, deviation);
  std::vector<float> logits(size);
  for (float& logit : logits) {
    logit = static_cast<float>(normal(generator));
  }
  return logits;
}

// The definition in sampler.h, in float64 with a full sort: token to probability, likeliest first.
std::vector<std::pair<TokenId, double>> Reference(const std::vector<float>& logits,
                                                  const SamplingParams& params) {
  std::vector<TokenId> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
  if (params.top_k > 0) {
    ids.resize(std::min(ids.size(), size_t(params.top_k)));
  }
  const auto weight = [&](TokenId id) {
    return std::exp((double{logits[id]} - logits[ids[0]]) / params.temperature);
  };
  double total = 0;
  for (const TokenId id : ids) {
    total += weight(id);
  }
  std::vector<std::pair<TokenId, double>> kept;
  double mass = 0;
  for (const TokenId id : ids) {
    if (mass >= params.top_p * total && params.top_p < 1) {
      break;
    }
    mass += weight(id);
    if (weight(id) >= params.min_p) {
      kept.emplace_back(id, weight(id));
    }
  }
  double kept_total = 0;
  for (const auto& [id, w] : kept) {
    kept_total += w;
  }
  for (auto& [id, w] : kept) {
    w /= kept_total;
  }
  return kept;
}

// What the reference picks for one uniform number; `margin` is how near that is to another pick.
TokenId ReferencePick(const std::vector<std::pair<TokenId, double>>& kept, double u,
                      double* margin) {
  double passed = 0;
  *margin = 1;
  for (const auto& [id, probability] : kept) {
    passed += probability;
    *margin = std::min(*margin, std::abs(passed - u));
    if (passed > u) {
      return id;
    }
  }
  return kept.back().first;
}

struct FilterCase {
  const char* name;
  SamplingParams params;
};

std::vector<FilterCase> FilterCases() {
  return {{"none", {}},
          {"hot", {.temperature = 5.0f}},
          {"cold", {.temperature = 0.1f}},
          {"top_k 1", {.top_k = 1}},
          {"top_k 7", {.top_k = 7}},
          {"top_k beyond the vocabulary", {.top_k = 100000}},
          {"top_p 0.5", {.top_p = 0.5f}},
          {"top_p 0.999", {.temperature = 2.0f, .top_p = 0.999f}},
          {"top_p tiny", {.top_p = 1e-7f}},
          {"min_p 0.1", {.min_p = 0.1f}},
          {"min_p 1", {.min_p = 1.0f}},
          {"top_k and top_p", {.temperature = 3.0f, .top_k = 50, .top_p = 0.7f}},
          {"all", {.temperature = 2.0f, .top_k = 200, .top_p = 0.9f, .min_p = 0.02f}}};
}

// Draw by draw equal to the naive reference, so the candidates, their order and their weights are
// all the same; only draws that rounding could tip are left out.
TEST(SamplerTest, EveryFilterAgreesWithTheNaiveReference) {
  for (const FilterCase& test_case : FilterCases()) {
    SCOPED_TRACE(test_case.name);
    for (const int vocab_size : {1, 5, 100, 3000}) {
      const std::vector<float> logits = RandomLogits(vocab_size, 2.0, vocab_size);
      Sampler sampler(vocab_size);
      SamplingParams params = test_case.params;
      params.seed = 99;
      const auto kept = Reference(logits, params);
      int compared = 0;
      for (int i = 0; i < 400; ++i) {
        double margin = 0;
        const TokenId expected = ReferencePick(kept, UniformDraw(99, 0, i), &margin);
        std::vector<float> row = logits;
        const TokenId actual = sampler.Sample(row, params, i);
        if (margin > 1e-6) {
          ASSERT_EQ(actual, expected) << "vocab " << vocab_size << " draw " << i;
          ++compared;
        }
      }
      EXPECT_GT(compared, 380);
    }
  }
}

TEST(SamplerTest, DrawsFollowTheSoftmax) {
  const std::vector<float> logits = RandomLogits(40, 1.0, 3);
  const SamplingParams params = {.temperature = 0.8f, .seed = 12345};
  Sampler sampler(40);
  constexpr int kDraws = 40000;
  std::map<TokenId, int> counts;
  for (int i = 0; i < kDraws; ++i) {
    std::vector<float> row = logits;
    ++counts[sampler.Sample(row, params, i)];
  }
  double chi_square = 0;
  for (const auto& [id, probability] : Reference(logits, params)) {
    const double expected = kDraws * probability;
    ASSERT_GT(expected, 5);
    chi_square += std::pow(counts[id] - expected, 2) / expected;
  }
  EXPECT_LT(chi_square, 72.1);  // 39 degrees of freedom, p = 0.001
}

TEST(SamplerTest, GreedyTakesTheLikeliestAndTiesGoToTheLowestId) {
  const SamplingParams greedy = {.temperature = 0};
  EXPECT_EQ(SampleOnce({1, 3, 2}, greedy), 1);
  EXPECT_EQ(SampleOnce({1, 3, 3, 3}, greedy), 1);
  EXPECT_EQ(SampleOnce({-0.0f, 0.0f}, greedy), 0);
  EXPECT_EQ(SampleOnce({7}, greedy), 0);
}

TEST(SamplerTest, TiesAreCutByIdAndWalkedByIdOrder) {
  const std::vector<float> logits(1000, 1.5f);
  std::set<TokenId> seen;
  for (int i = 0; i < 500; ++i) {
    seen.insert(SampleOnce(logits, {.top_k = 4, .seed = 1}, i));
    double margin = 0;
    const SamplingParams plain = {.seed = 1};
    EXPECT_EQ(SampleOnce(logits, plain, i),
              ReferencePick(Reference(logits, plain), UniformDraw(1, 0, i), &margin));
  }
  EXPECT_THAT(seen, testing::ElementsAre(0, 1, 2, 3));
}

TEST(SamplerTest, TopPKeepsTheSmallestSetThatReachesIt) {
  // Probabilities 1/4, 1/2, 1/4: just under a half is reached by the likeliest alone.
  const float half = std::log(0.5f);
  std::set<TokenId> half_mass;
  std::set<TokenId> more_mass;
  for (int i = 0; i < 200; ++i) {
    half_mass.insert(SampleOnce({half, 0, half}, {.top_p = 0.4999f, .seed = 5}, i));
    more_mass.insert(SampleOnce({half, 0, half}, {.top_p = 0.6f, .seed = 5}, i));
  }
  EXPECT_THAT(half_mass, testing::ElementsAre(1));
  EXPECT_THAT(more_mass, testing::ElementsAre(0, 1));
}

TEST(SamplerTest, EndTokensAreBarredUntilMinNewTokens) {
  SamplingParams params = {.temperature = 0, .min_new_tokens = 3};
  params.end_token_ids = {2, 0, -1, 50};  // ids outside the vocabulary are nothing to bar
  const std::vector<float> logits = {8, 1, 9, 2};
  EXPECT_EQ(SampleOnce(logits, params, 0), 3);
  EXPECT_EQ(SampleOnce(logits, params, 2), 3);
  EXPECT_EQ(SampleOnce(logits, params, 3), 2);
  params.temperature = 1;
  for (int i = 0; i < 200; ++i) {
    params.seed = i;
    const TokenId token = SampleOnce(logits, params, 2);
    EXPECT_TRUE(token == 1 || token == 3) << token;
  }
}

TEST(SamplerTest, TheDrawDependsOnSeedSampleAndIndexOnly) {
  const std::vector<float> logits = RandomLogits(500, 1.0, 8);
  const SamplingParams params = {.seed = 4, .sample_index = 2};
  Sampler fresh(500);
  Sampler used(500);
  for (int i = 0; i < 20; ++i) {
    std::vector<float> other = RandomLogits(500, 3.0, i);
    used.Sample(other, {.top_k = 5, .seed = 77}, i);
  }
  std::set<TokenId> others;
  for (int i = 0; i < 20; ++i) {
    std::vector<float> a = logits;
    std::vector<float> b = logits;
    EXPECT_EQ(fresh.Sample(a, params, i), used.Sample(b, params, i));
    SamplingParams parallel = params;
    parallel.sample_index = i;
    others.insert(SampleOnce(logits, parallel));
  }
  EXPECT_GT(others.size(), 10u);
}

TEST(SamplerTest, LogitsAreLeftAsTheyWere) {
  SamplingParams params = {.min_new_tokens = 3, .end_token_ids = {2, 0, 2, -1, 50}};
  const std::vector<float> logits = {8, 1, 9, 2};
  for (const float temperature : {0.0f, 1.0f}) {
    params.temperature = temperature;
    std::vector<float> row = logits;
    Sampler(4).Sample(row, params, 0);
    EXPECT_EQ(row, logits);
  }
}

TEST(SamplerTest, LogprobsAreThoseOfTheSoftmaxInOrder) {
  for (const int vocab_size : {1, 2, 19, 20, 50, 512, 32000}) {
    std::vector<float> logits = RandomLogits(vocab_size, 3.0, vocab_size);
    if (vocab_size > 20) {
      std::for_each(logits.begin(), logits.end(), [](float& x) { x = std::round(4 * x) / 4; });
    }
    double total = 0;
    for (const float logit : logits) {
      total += std::exp(double{logit});
    }
    std::vector<TokenId> order(vocab_size);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
    for (const int size : {0, 1, 5, 20}) {
      std::vector<TokenLogprob> top(std::min(size, vocab_size));
      const TokenId token = vocab_size / 2;
      EXPECT_NEAR(Sampler::Logprobs(logits, token, top), logits[token] - std::log(total), 1e-5);
      for (size_t i = 0; i < top.size(); ++i) {
        EXPECT_EQ(top[i].id, order[i]) << vocab_size << " " << i;
        EXPECT_NEAR(top[i].logprob, logits[order[i]] - std::log(total), 1e-5);
      }
    }
  }
}

TEST(SamplerTest, LogprobsOfEqualAndExtremeLogits) {
  std::vector<TokenLogprob> top(20);
  EXPECT_NEAR(Sampler::Logprobs(std::vector<float>(1000, -7e4f), 3, top), -std::log(1000), 1e-5);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(top[i].id, i);
  }
  top.resize(2);
  EXPECT_EQ(Sampler::Logprobs(std::vector<float>{3e38f, -3e38f, 0}, 0, top), 0);
  EXPECT_EQ(top[1].id, 2);
  EXPECT_NEAR(top[1].logprob, -3e38f, 1e32);
  // No distribution, but still tokens.
  Sampler::Logprobs(std::vector<float>{kNan, -kInfinity, kNan}, 0, top);
  EXPECT_NE(top[0].id, top[1].id);
}

TEST(SamplerTest, AdjustsBeforeItChoosesAndLeavesLogitsAsTheyWere) {
  const std::vector<float> row = {4, 3, 2, 1};
  TokenCounts counts;
  counts.Reset(std::vector<TokenId>{0}, 0);
  Sampler sampler(4);
  std::vector<float> logits = row;
  EXPECT_EQ(sampler.Sample(logits, {.temperature = 0, .presence_penalty = 1.5f}, 0, counts), 1);
  EXPECT_EQ(logits, row);
  // Bars end tokens besides, and keeps top_k and the rest to what is left.
  const SamplingParams params = {
      .temperature = 0, .min_new_tokens = 1, .end_token_ids = {2}, .banned_token_ids = {0, 1}};
  EXPECT_EQ(sampler.Sample(logits, params, 0), 3);
  EXPECT_EQ(sampler.Sample(logits, params, 1), 2);
  EXPECT_EQ(logits, row);
  for (int i = 0; i < 200; ++i) {
    const TokenId token = sampler.Sample(
        logits, {.temperature = 10, .top_k = 2, .seed = 7, .banned_token_ids = {0}}, i);
    EXPECT_TRUE(token == 1 || token == 2) << token;
  }
}

TEST(SamplerTest, ExtremeRowsGiveAnAnswer) {
  for (const float temperature : {0.0f, 1.0f, 1e-38f, 1e30f}) {
    SCOPED_TRACE(temperature);
    for (const float top_p : {1e-30f, 0.5f, 1.0f}) {
      const SamplingParams params = {.temperature = temperature, .top_p = top_p, .seed = 3};
      EXPECT_EQ(SampleOnce({-kInfinity, -kInfinity, -kInfinity}, params), 0);
      EXPECT_EQ(SampleOnce({kNan, kNan}, params), 0);
      EXPECT_EQ(SampleOnce({kNan, -kInfinity, 4, kNan}, params), 2);
      EXPECT_EQ(SampleOnce({1, kInfinity, kInfinity}, params), 1);
      EXPECT_EQ(SampleOnce({-kInfinity, -3e38f, -kInfinity}, params), 1);
      const TokenId token = SampleOnce({3e38f, kNan, -3e38f}, params);
      EXPECT_TRUE(token == 0 || (temperature > 1 && token == 2)) << token;
    }
  }
  // A cold temperature must not turn two different logits into a tie of infinities.
  EXPECT_EQ(SampleOnce({1, 2}, {.temperature = 1e-38f, .seed = 3}), 1);
}

}  // namespace
}  // namespace ferrite

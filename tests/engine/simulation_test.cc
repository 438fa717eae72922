// What the scheduler's policy promises, over modelled time.
#include "tests/testing/simulation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace ferrite {
namespace {

using test::Simulate;
using test::SimulatedOutcome;
using test::SimulatedRequest;
using test::SimulationOptions;
using test::SimulationResult;

class SimulationTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::Load(std::string(FERRITE_SOURCE_DIR) + "/models/stories260k");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  // Every request ends, and every block comes back.
  SimulationResult Run(const std::vector<SimulatedRequest>& requests) {
    auto result = Simulate(options_, requests, *tokenizer_);
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return {};
    EXPECT_EQ(result->blocks_not_free, 0);
    EXPECT_LE(result->largest_step_tokens, options_.scheduler.max_step_tokens);
    const int32_t mixed = options_.scheduler.mixed_step_tokens;
    EXPECT_LE(
        result->largest_mixed_step_tokens,
        std::max(mixed == 0 ? BackendInfo().mixed_step_tokens : mixed, 3 * result->most_running));
    EXPECT_LE(result->most_running, options_.scheduler.max_running);
    for (const SimulatedOutcome& outcome : result->outcomes) EXPECT_GE(outcome.ended, 0);
    return *std::move(result);
  }

  double StepSeconds(int32_t tokens, int32_t context) const {
    return options_.step.base_seconds + options_.step.token_seconds * tokens +
           options_.step.context_seconds * context;
  }

  SimulationOptions options_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

double Percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

TEST_F(SimulationTest, OneRequestTakesItsSteps) {
  const SimulationResult result = Run({{.arrival = 2, .prompt_tokens = 1000, .output_tokens = 11}});
  EXPECT_EQ(result.steps, 12u) << "two chunks, the second of which gives the first token";
  const SimulatedOutcome& outcome = result.outcomes[0];
  EXPECT_EQ(outcome.started, 0);
  EXPECT_NEAR(outcome.first_token, 2 * options_.step.base_seconds + 1000 * 2.3e-5 + 1512 * 2.4e-8,
              1e-6);
  EXPECT_NEAR(outcome.longest_gap, options_.step.base_seconds + 2.3e-5 + 1010 * 2.4e-8, 1e-6);
  EXPECT_NEAR(outcome.ended, result.busy_seconds, 1e-6);
}

// Prompts of 8,000 tokens come all the time; those who decode wait for one short chunk
// at most.
TEST_F(SimulationTest, DecodesNeverWaitBehindALongPrompt) {
  options_.num_blocks = 1 << 16;
  std::vector<SimulatedRequest> requests;
  for (int i = 0; i < 16; ++i) {
    requests.push_back({.prompt_tokens = 16, .output_tokens = 400, .client = "chat"});
  }
  for (int i = 0; i < 20; ++i) {
    requests.push_back(
        {.arrival = 0.2 * i, .prompt_tokens = 8000, .output_tokens = 1, .client = "long"});
  }
  const SimulationResult result = Run(requests);
  EXPECT_EQ(result.preemptions, 0u);
  for (int i = 0; i < 16; ++i) {
    EXPECT_LE(result.outcomes[i].longest_gap, StepSeconds(256, 30000)) << i;
  }
  EXPECT_EQ(result.largest_mixed_step_tokens, 256);
  EXPECT_EQ(result.largest_step_tokens, 512) << "where nobody decodes";
}

// `count` of one kind at once, and from `begin` seconds on ten prompts of 1,000 tokens, five a
// second.
std::vector<SimulatedRequest> ChatAndPrompts(const SimulatedRequest& chat, int count,
                                             double begin) {
  std::vector<SimulatedRequest> requests(static_cast<size_t>(count), chat);
  for (int i = 0; i < 10; ++i) {
    requests.push_back(
        {.arrival = begin + 0.2 * i, .prompt_tokens = 1000, .output_tokens = 1, .client = "new"});
  }
  return requests;
}

// 32 sequences decode, after two seconds all of them.
TEST_F(SimulationTest, APromptAtMostDoublesTheTimeBetweenTokens) {
  const SimulationResult result = Run(ChatAndPrompts(
      {.prompt_tokens = 1000, .output_tokens = 600, .client = "chat"}, /*count=*/32, /*begin=*/2));
  for (int i = 0; i < 32; ++i) {
    EXPECT_LE(result.outcomes[i].longest_gap, 2 * StepSeconds(32, 32 * 1600)) << i;
  }
  for (int i = 32; i < 42; ++i) {
    EXPECT_LE(result.outcomes[i].first_token, 6 * StepSeconds(256, 33 * 1600)) << i;
  }
}

// 250 sequences decode; what they leave of a step is still most of it.
TEST_F(SimulationTest, PromptsDoNotStarveBesideManyThatDecode) {
  options_.num_blocks = 1 << 14;
  options_.scheduler = {.max_running = 256, .max_step_tokens = 2048};
  const SimulationResult result = Run(ChatAndPrompts(
      {.prompt_tokens = 16, .output_tokens = 400, .client = "chat"}, /*count=*/250, /*begin=*/1));
  for (int i = 250; i < 260; ++i) {
    EXPECT_LE(result.outcomes[i].first_token, 4 * StepSeconds(750, 251 * 1000)) << i;
  }
}

// One client sends 1,000 requests at once; another's, one a second, start as if it were alone.
TEST_F(SimulationTest, AFloodOfOneClientDoesNotDelayAnother) {
  std::vector<SimulatedRequest> requests;
  for (int i = 0; i < 1000; ++i) {
    requests.push_back({.prompt_tokens = 200, .output_tokens = 200, .client = "flood"});
  }
  for (int i = 1; i <= 20; ++i) {
    requests.push_back(
        {.arrival = 0.5 * i, .prompt_tokens = 200, .output_tokens = 20, .client = "drop"});
  }
  const SimulationResult result = Run(requests);
  std::vector<double> flood, drop;
  for (size_t i = 0; i < requests.size(); ++i) {
    (i < 1000 ? flood : drop).push_back(result.outcomes[i].started);
  }
  // A slot becomes free when one of the 64 that run ends: they began together.
  EXPECT_LT(Percentile(drop, 1.0), 3);
  EXPECT_GT(Percentile(flood, 0.5), 10);
  EXPECT_GT(result.busy_seconds / result.seconds, 0.95) << "and the device is not idle for it";
}

TEST_F(SimulationTest, ASharedBeginningIsComputedOnce) {
  options_.num_blocks = 1 << 14;
  std::vector<SimulatedRequest> requests;
  for (int i = 0; i < 64; ++i) {
    requests.push_back({.prompt_tokens = 2050, .output_tokens = 50, .shared_tokens = 2000});
  }
  const SimulationResult shared = Run(requests);
  options_.prefix_caching = false;
  const SimulationResult apart = Run(requests);
  std::vector<double> with, without;
  for (int i = 0; i < 64; ++i) {
    EXPECT_EQ(shared.outcomes[i].cached_tokens, i == 0 ? 0 : 2000);
    with.push_back(shared.outcomes[i].first_token);
    without.push_back(apart.outcomes[i].first_token);
  }
  EXPECT_LT(Percentile(with, 0.5), Percentile(without, 0.5) / 5);
  EXPECT_LT(Percentile(with, 1), Percentile(without, 1) / 5);
}

// Half as much again as the device can do: it does as much as it can, whoever waits.
TEST_F(SimulationTest, OverloadCostsNoThroughput) {
  std::mt19937 random(5);
  const auto load = [&](double rate) {
    std::vector<SimulatedRequest> requests;
    std::exponential_distribution<double> gap(rate);
    double at = 0;
    for (int i = 0; i < 2000; ++i) {
      at += gap(random);
      requests.push_back({.arrival = at,
                          .prompt_tokens = 50 + static_cast<int32_t>(random() % 400),
                          .output_tokens = 50 + static_cast<int32_t>(random() % 200)});
    }
    return requests;
  };
  const auto rate = [](const SimulationResult& result) { return 2000 / result.seconds; };
  const double peak = rate(Run(load(1e6)));
  EXPECT_GT(rate(Run(load(1.5 * peak))), 0.95 * peak);
  EXPECT_GT(rate(Run(load(0.8 * peak))), 0.75 * peak);
}

// Outputs far longer than the prompts, and as many as fit: what newcomers leave to those that run
// keeps preemption from throwing away what was computed.
TEST_F(SimulationTest, LongOutputsAreSeldomComputedAgain) {
  std::mt19937 random(7);
  std::vector<SimulatedRequest> requests;
  int64_t tokens = 0;
  for (int i = 0; i < 1500; ++i) {
    requests.push_back({.prompt_tokens = 1 + static_cast<int32_t>(random() % 200),
                        .output_tokens = 1 + static_cast<int32_t>(random() % 1200)});
    tokens += requests.back().prompt_tokens + requests.back().output_tokens;
  }
  options_.scheduler = {.max_running = 256, .max_step_tokens = 2048};
  const SimulationResult result = Run(requests);
  EXPECT_GT(result.preemptions, 0u);
  EXPECT_LT(result.recomputed_tokens, tokens * 3 / 20)
      << "a quarter, if they left it one block in 100";
}

// Any mixture of clients, priorities, lengths and shared beginnings, in a pool that is too small.
TEST_F(SimulationTest, NothingLeaksStarvesOrStops) {
  uint64_t preemptions = 0;
  for (int seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    options_.num_blocks = 64 + static_cast<int32_t>(random() % 200);
    options_.pipeline_depth = 1 + seed % 2;
    options_.prefix_caching = seed % 3 != 0;
    options_.scheduler.max_running = 4 + static_cast<int32_t>(random() % 60);
    options_.scheduler.max_step_tokens = 64 + static_cast<int32_t>(random() % 500);
    options_.scheduler.mixed_step_tokens = 1 + static_cast<int32_t>(random() % 300);
    options_.scheduler.aging_seconds = 0.5;
    std::vector<SimulatedRequest> requests;
    double at = 0;
    for (int i = 0; i < 300; ++i) {
      at += static_cast<double>(random() % 100) * 1e-3;
      requests.push_back({.arrival = at,
                          .prompt_tokens = 1 + static_cast<int32_t>(random() % 500),
                          .output_tokens = 1 + static_cast<int32_t>(random() % 300),
                          .client = std::string(1, static_cast<char>('a' + random() % 5)),
                          .priority = static_cast<int32_t>(random() % 5) - 2,
                          .shared_tokens = static_cast<int32_t>(random() % 3) * 100});
    }
    preemptions += Run(requests).preemptions;
  }
  EXPECT_GT(preemptions, 0u);
}

}  // namespace
}  // namespace ferrite

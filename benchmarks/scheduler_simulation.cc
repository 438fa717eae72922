// Replays a random workload through the scheduler over modelled time, so that policy can be
// compared without a GPU. Prints one JSON object; times are modelled, but for wall_seconds.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/testing/simulation.h"

namespace ferrite {
namespace {

struct Load {
  int requests = 100000;
  double rate = 20;  // a second, Poisson
  int prompt_tokens = 500;
  int output_tokens = 150;
  int shared_tokens = 0;
  int clients = 10;
  int seed = 1;
};

// Lengths are exponential around their mean: many short ones, a few long ones.
std::vector<test::SimulatedRequest> MakeLoad(const Load& load, int32_t longest) {
  std::mt19937_64 random(load.seed);
  std::exponential_distribution<double> gap(load.rate);
  std::exponential_distribution<double> one(1);
  std::vector<test::SimulatedRequest> requests;
  double at = 0;
  for (int i = 0; i < load.requests; ++i) {
    at += gap(random);
    const auto length = [&](int mean) {
      return static_cast<int32_t>(std::clamp<double>(mean * one(random), 1, longest / 2.0 - 1));
    };
    const int32_t prompt = std::min(load.shared_tokens + length(load.prompt_tokens), longest / 2);
    requests.push_back({.arrival = at,
                        .prompt_tokens = prompt,
                        .output_tokens = length(load.output_tokens),
                        .client = absl::StrCat(random() % load.clients),
                        .shared_tokens = std::min(load.shared_tokens, prompt - 1)});
  }
  return requests;
}

nlohmann::json Percentiles(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  nlohmann::json out;
  for (const auto& [name, share] :
       {std::pair("p50", 0.5), {"p90", 0.9}, {"p99", 0.99}, {"max", 1.0}}) {
    out[name] = values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
  }
  return out;
}

int Main(int argc, char** argv) {
  Load load;
  test::SimulationOptions options;
  options.num_blocks = 56000;  // what an H200 has left beside an 8B model in fp16
  options.scheduler = {.max_running = 256, .max_step_tokens = 2048};
  std::string model = "models/stories260k";
  CLI::App app("Replays a random workload through the scheduler over modelled time.");
  app.add_option("--requests", load.requests)->check(CLI::PositiveNumber);
  app.add_option("--rate", load.rate, "requests a second")->check(CLI::PositiveNumber);
  app.add_option("--prompt-tokens", load.prompt_tokens, "on average")->check(CLI::PositiveNumber);
  app.add_option("--output-tokens", load.output_tokens, "on average")->check(CLI::PositiveNumber);
  app.add_option("--shared-tokens", load.shared_tokens)->check(CLI::NonNegativeNumber);
  app.add_option("--clients", load.clients)->check(CLI::PositiveNumber);
  app.add_option("--seed", load.seed);
  app.add_option("--blocks", options.num_blocks)->check(CLI::PositiveNumber);
  app.add_option("--max-running", options.scheduler.max_running)->check(CLI::PositiveNumber);
  app.add_option("--max-step-tokens", options.scheduler.max_step_tokens)
      ->check(CLI::PositiveNumber);
  app.add_option("--mixed-step-tokens", options.scheduler.mixed_step_tokens)
      ->check(CLI::PositiveNumber);
  app.add_option("--prefix-caching", options.prefix_caching);
  app.add_option("--model", model, "whose tokenizer");
  CLI11_PARSE(app, argc, argv);

  const auto tokenizer = Tokenizer::Load(model);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    return 1;
  }
  const auto requests = MakeLoad(load, options.num_blocks * options.block_size);
  const Clock::time_point begin = Clock::now();
  const auto result = test::Simulate(options, requests, **tokenizer);
  if (!result.ok()) {
    std::cerr << result.status() << "\n";
    return 1;
  }
  const double wall = SecondsBetween(begin, Clock::now());
  std::vector<double> first, gaps;
  double output_tokens = 0, cached_tokens = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    first.push_back(result->outcomes[i].first_token);
    gaps.push_back(result->outcomes[i].longest_gap);
    output_tokens += requests[i].output_tokens;
    cached_tokens += result->outcomes[i].cached_tokens;
  }
  std::cout << nlohmann::json{{"requests", requests.size()},
                              {"wall_seconds", wall},
                              {"seconds", result->seconds},
                              {"device_busy", result->busy_seconds / result->seconds},
                              {"steps", result->steps},
                              {"preemptions", result->preemptions},
                              {"recomputed_tokens", result->recomputed_tokens},
                              {"most_running", result->most_running},
                              {"output_tokens_per_second", output_tokens / result->seconds},
                              {"cached_prompt_tokens", cached_tokens},
                              {"time_to_first_token_seconds", Percentiles(first)},
                              {"longest_gap_seconds", Percentiles(gaps)}}
                   .dump(2)
            << "\n";
  return 0;
}

}  // namespace
}  // namespace ferrite

int main(int argc, char** argv) { return ferrite::Main(argc, argv); }

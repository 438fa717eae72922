// The options of `ferrite bench`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/bench_workload.h"

namespace CLI {
class App;
}  // namespace CLI

namespace ferrite {

inline constexpr int64_t kMostBenchRequests = 100'000'000;  // as good as no limit

// What a request must meet to count as good; seconds, unset: anything will do.
struct Objective {
  std::optional<double> first_token;
  std::optional<double> inter_token;  // mean of the request
  std::optional<double> end_to_end;
};

// "ttft=500ms,itl=50ms,e2e=10s", at least one of them. InvalidArgument names the part.
absl::StatusOr<Objective> ParseObjective(const std::string& text);

// "1,2,4.5". InvalidArgument names the one that is no number from `least` to `most`, or, if
// `whole`, no integer.
absl::StatusOr<std::vector<double>> ParseSteps(const std::string& text, double least, double most,
                                               bool whole);

struct BenchOptions {
  BenchWorkload workload;
  int32_t concurrency = 1;
  std::optional<double> rate;  // conversations a second of an open loop; unset: closed
  int64_t count = 0;           // conversations to measure; 0: not given
  std::optional<double> duration;
  int64_t warm_up = 0;
  int64_t check = 4;
  int32_t threads = 1;
  std::optional<Objective> goodput;
  std::vector<double> sweep_concurrency;
  std::vector<double> sweep_rate;
  std::string plot;
  bool json = false;

  bool sweeps() const { return !sweep_concurrency.empty() || !sweep_rate.empty(); }
  // The options of each point of the sweep; these options themselves if they do not sweep.
  std::vector<BenchOptions> Points() const;
};

CLI::App* AddBench(CLI::App* app, BenchOptions* options);

// InvalidArgument for options that exclude or need each other.
absl::Status CheckOptions(const BenchOptions& options);

}  // namespace ferrite

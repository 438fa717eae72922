// A worker's scheduling over modelled time: replays hours of load in seconds, without a device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend.h"
#include "engine/scheduler.h"
#include "engine/tokenizer/tokenizer.h"

namespace ferrite::test {

// How long a step takes: `base` for the weights, and so much for each of its tokens, and for each
// token of context that its sequences read. The defaults are llama-3.1-8b in fp16 on an H200,
// fitted to the steps in docs/performance.md.
struct StepModel {
  double base_seconds = 3.85e-3;
  double token_seconds = 2.3e-5;
  double context_seconds = 2.4e-8;

  double Seconds(const Batch& batch) const;
};

struct SimulatedRequest {
  double arrival = 0;  // seconds; requests come in this order
  int32_t prompt_tokens = 1;
  int32_t output_tokens = 1;
  std::string client = "";
  int32_t priority = 0;
  int32_t shared_tokens = 0;  // at the prompt's beginning, the same in all requests
};

struct SimulationOptions {
  int32_t num_blocks = 4096;
  int32_t block_size = 16;
  SchedulerOptions scheduler;
  StepModel step;
  int32_t pipeline_depth = 2;
  bool prefix_caching = true;
};

// Of a request, in seconds from its arrival.
struct SimulatedOutcome {
  double started = -1;  // its first step; negative if it never came
  double first_token = -1;
  double ended = -1;
  double longest_gap = 0;  // between two of its tokens
  int32_t cached_tokens = 0;
};

struct SimulationResult {
  std::vector<SimulatedOutcome> outcomes;  // by request
  double seconds = 0;                      // of modelled time, to the end of the last request
  double busy_seconds = 0;                 // of the device
  uint64_t steps = 0;
  uint64_t preemptions = 0;
  int64_t recomputed_tokens = 0;  // that had been computed before a preemption
  int32_t largest_step_tokens = 0;
  int32_t largest_mixed_step_tokens = 0;  // of those that have decodes and more
  int32_t most_running = 0;
  int32_t blocks_not_free = 0;  // at the end
};

// Runs until every request has ended. Internal if the scheduler has work but plans none, or refuses
// a step's result.
absl::StatusOr<SimulationResult> Simulate(const SimulationOptions& options,
                                          const std::vector<SimulatedRequest>& requests,
                                          const Tokenizer& tokenizer);

}  // namespace ferrite::test

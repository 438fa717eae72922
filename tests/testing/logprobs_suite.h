// The log-probabilities of a step's result against transformers, on any backend: the tests are in
// logprobs_suite.cc, and a test program supplies what is declared here.
#pragma once

#include <memory>

#include "engine/backend.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"

namespace ferrite {

// What the backend under test must have room for.
struct LogprobsBackendSizes {
  static constexpr int32_t kNumBlocks = 96;
  static constexpr int32_t kBlockSize = 4;
  static constexpr int32_t kMaxSequences = 6;
  static constexpr int32_t kMaxStepTokens = 128;
};

bool LogprobsDeviceIsThere();

// How far a log-probability may be from the reference's.
double LogprobsTolerance();

std::unique_ptr<Backend> CreateLogprobsBackend(const ModelConfig& config,
                                               const Checkpoint& checkpoint);

}  // namespace ferrite

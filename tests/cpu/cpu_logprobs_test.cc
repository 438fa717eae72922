// The CPU backend's log-probabilities; the tests are tests/testing/logprobs_suite.cc.
#include "cpu/cpu_backend.h"
#include "gtest/gtest.h"
#include "tests/testing/logprobs_suite.h"

namespace ferrite {

bool LogprobsDeviceIsThere() { return true; }

double LogprobsTolerance() { return 1e-4; }

std::unique_ptr<Backend> CreateLogprobsBackend(const ModelConfig& config,
                                               const Checkpoint& checkpoint) {
  using Sizes = LogprobsBackendSizes;
  auto backend = CpuBackend::Create(config, checkpoint,
                                    {.compute_type = "fp32",
                                     .num_threads = 2,
                                     .num_blocks = Sizes::kNumBlocks,
                                     .block_size = Sizes::kBlockSize,
                                     .max_sequences = Sizes::kMaxSequences,
                                     .max_step_tokens = Sizes::kMaxStepTokens});
  EXPECT_TRUE(backend.ok()) << backend.status();
  return std::move(backend).value();
}

}  // namespace ferrite

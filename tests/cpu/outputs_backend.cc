// The CPU backend for suites of what steps give beside plainly sampled tokens.
#include "tests/testing/outputs_backend.h"

#include "cpu/cpu_backend.h"
#include "gtest/gtest.h"

namespace ferrite::test {

std::vector<OutputsVariant> OutputsVariants() { return {{.name = "Fp32", .tolerance = 1e-4}}; }

bool OutputsDeviceIsThere() { return true; }

std::unique_ptr<Backend> CreateOutputsBackend(const OutputsVariant&, const ModelConfig& config,
                                              const Checkpoint& checkpoint) {
  auto backend = CpuBackend::Create(config, checkpoint,
                                    {.compute_type = "fp32",
                                     .num_threads = 2,
                                     .num_blocks = OutputsSizes::kNumBlocks,
                                     .block_size = OutputsSizes::kBlockSize,
                                     .max_sequences = OutputsSizes::kMaxSequences,
                                     .max_step_tokens = OutputsSizes::kMaxStepTokens});
  EXPECT_TRUE(backend.ok()) << backend.status();
  return *std::move(backend);
}

std::optional<std::vector<float>> OutputsLogits(const Backend&) { return std::nullopt; }

}  // namespace ferrite::test

// The CPU backend for the suites that run on any.
#include "cpu/cpu_backend.h"
#include "cpu/isa.h"
#include "tests/testing/suite_backend.h"

namespace ferrite::test {

std::vector<SuiteVariant> SuiteVariants() {
  std::vector<SuiteVariant> variants = {{.name = "Fp32", .compute_type = "fp32"}};
  if (CpuMultipliesBf16()) {
    variants.push_back({.name = "Bf16", .compute_type = "bf16"});
  }
  return variants;
}

bool SuiteDeviceIsThere() { return true; }

absl::StatusOr<std::unique_ptr<Backend>> CreateSuiteBackend(const SuiteVariant& variant,
                                                            const ModelConfig& config,
                                                            const Checkpoint& checkpoint,
                                                            const SuiteSizes& sizes) {
  return CpuBackend::Create(config, checkpoint,
                            {.compute_type = variant.compute_type,
                             .num_threads = 2,
                             .num_blocks = sizes.num_blocks,
                             .block_size = sizes.block_size,
                             .max_sequences = sizes.max_sequences,
                             .max_step_tokens = sizes.max_step_tokens,
                             .max_sequence_length = 512});
}

}  // namespace ferrite::test

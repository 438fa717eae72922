// The CUDA backend for the suites that run on any: both types, by graphs and kernel by kernel.
#include "cuda/cuda_backend.h"
#include "tests/cuda/gpu_test.h"
#include "tests/testing/suite_backend.h"

namespace ferrite::test {

std::vector<SuiteVariant> SuiteVariants() {
  return {{.name = "Fp16Graphs", .compute_type = "fp16", .graphs = true},
          {.name = "Fp16Eager", .compute_type = "fp16", .graphs = false},
          {.name = "Bf16Graphs", .compute_type = "bf16", .graphs = true},
          {.name = "Bf16Eager", .compute_type = "bf16", .graphs = false}};
}

bool SuiteDeviceIsThere() { return HasGpu(); }

absl::StatusOr<std::unique_ptr<Backend>> CreateSuiteBackend(const SuiteVariant& variant,
                                                            const ModelConfig& config,
                                                            const Checkpoint& checkpoint,
                                                            const SuiteSizes& sizes) {
  CudaBackendOptions options;
  options.compute_type = variant.compute_type;
  options.graphs = variant.graphs;
  options.num_blocks = sizes.num_blocks;
  options.block_size = sizes.block_size;
  options.max_sequences = sizes.max_sequences;
  options.max_step_tokens = sizes.max_step_tokens;
  options.max_sequence_length = 512;
  return CudaBackend::Create(config, checkpoint, options);
}

}  // namespace ferrite::test

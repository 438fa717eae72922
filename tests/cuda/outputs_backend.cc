// The CUDA backend for suites of what steps give beside plainly sampled tokens: by graphs, and
// kernel by kernel.
#include "tests/testing/outputs_backend.h"

#include "cuda/cuda_backend.h"
#include "gtest/gtest.h"
#include "tests/cuda/gpu_test.h"

namespace ferrite::test {

std::vector<OutputsVariant> OutputsVariants() {
  return {{.name = "Fp16Graphs", .graphs = true, .tolerance = 2e-2},
          {.name = "Fp16Eager", .graphs = false, .tolerance = 2e-2}};
}

bool OutputsDeviceIsThere() { return HasGpu(); }

std::unique_ptr<Backend> CreateOutputsBackend(const OutputsVariant& variant,
                                              const ModelConfig& config,
                                              const Checkpoint& checkpoint) {
  CudaBackendOptions options;
  options.compute_type = "fp16";
  options.graphs = variant.graphs;
  options.num_blocks = OutputsSizes::kNumBlocks;
  options.block_size = OutputsSizes::kBlockSize;
  options.max_sequences = OutputsSizes::kMaxSequences;
  options.max_step_tokens = OutputsSizes::kMaxStepTokens;
  auto backend = CudaBackend::Create(config, checkpoint, options);
  EXPECT_TRUE(backend.ok()) << backend.status();
  return *std::move(backend);
}

std::optional<std::vector<float>> OutputsLogits(const Backend& backend) {
  auto logits = static_cast<const CudaBackend&>(backend).ReadLogits();
  EXPECT_TRUE(logits.ok()) << logits.status();
  return *std::move(logits);
}

}  // namespace ferrite::test

// The CUDA backend's log-probabilities; the tests are tests/testing/logprobs_suite.cc. Their steps
// of one token a sequence are graphs.
#include "cuda/cuda_backend.h"
#include "gtest/gtest.h"
#include "tests/cuda/gpu_test.h"
#include "tests/testing/logprobs_suite.h"

namespace ferrite {

bool LogprobsDeviceIsThere() { return test::HasGpu(); }

double LogprobsTolerance() { return 2e-2; }  // the weights are fp16

std::unique_ptr<Backend> CreateLogprobsBackend(const ModelConfig& config,
                                               const Checkpoint& checkpoint) {
  using Sizes = LogprobsBackendSizes;
  CudaBackendOptions options;
  options.compute_type = "fp16";
  options.num_blocks = Sizes::kNumBlocks;
  options.block_size = Sizes::kBlockSize;
  options.max_sequences = Sizes::kMaxSequences;
  options.max_step_tokens = Sizes::kMaxStepTokens;
  auto backend = CudaBackend::Create(config, checkpoint, options);
  EXPECT_TRUE(backend.ok()) << backend.status();
  return std::move(backend).value();
}

}  // namespace ferrite

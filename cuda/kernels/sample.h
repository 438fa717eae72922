// Chooses tokens from logits on the device: the same token as engine/sampler.h on the same logits,
// except where a top-p or min-p boundary lies within 1e-6.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/kernel_types.h"

namespace ferrite {

// A slot's sampling parameters as they lie in device memory.
struct GpuSamplingParams {
  static constexpr int32_t kMaxEndTokens = 32;

  float temperature = 0;
  int32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  uint64_t seed = 0;
  uint32_t sample_index = 0;
  int32_t min_new_tokens = 0;
  int32_t num_end_tokens = 0;
  int32_t end_token_ids[kMaxEndTokens] = {};
};

struct SampleArguments {
  const float* logits = nullptr;  // [num_rows, vocab_size] fp32, left as they are
  int32_t num_rows = 0;
  int32_t vocab_size = 0;
  const GpuSamplingParams* params = nullptr;  // [max_sequences]
  const int32_t* row_slots = nullptr;         // [num_rows] index into params; -1: no row
  const int32_t* output_indices = nullptr;    // [num_rows]
  int32_t* tokens = nullptr;                  // [num_rows]
  void* workspace = nullptr;                  // SampleWorkspaceBytes
};

size_t SampleWorkspaceBytes(int32_t max_rows, int32_t vocab_size);
cudaError_t SampleTokens(const SampleArguments& arguments, cudaStream_t stream);

}  // namespace ferrite

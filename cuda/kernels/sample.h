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
  int32_t num_logprobs = -1;  // as in SamplingParams; for logprobs.h
  // For adjust_logits.h.
  bool adjusts = false;        // SamplingParams::adjusts_logits()
  bool counts_tokens = false;  // SamplingParams::counts_tokens()
  bool bars_tokens = false;    // some are banned, or not all allowed
  int32_t num_biases = 0;
  float repetition_penalty = 1;
  float frequency_penalty = 0;
  float presence_penalty = 0;
  int32_t num_end_tokens = 0;
  int32_t end_token_ids[kMaxEndTokens] = {};
};

struct SampleArguments {
  const float* logits = nullptr;              // [num_rows, vocab_size] fp32, left as they are
  int32_t num_rows = 0;                       // at most 65535
  int32_t vocab_size = 0;                     // at most 2^18
  const GpuSamplingParams* params = nullptr;  // [max_sequences]
  const int32_t* row_slots = nullptr;         // [num_rows] index into params; -1: no row
  const int32_t* output_indices = nullptr;    // [num_rows]
  int32_t* tokens = nullptr;                  // [num_rows]; that of no row stays as it is
  void* workspace = nullptr;                  // SampleWorkspaceBytes, whatever is in them
};

// Workspace for up to `max_rows` rows.
size_t SampleWorkspaceBytes(int32_t max_rows, int32_t vocab_size);

// A row's result depends on that row alone: sums are of integers, the same in any order. Greedy
// rows read their logits once; the others once more for a histogram of the weights, and once to
// list the tokens near the bounds of top_k, top_p, min_p and the draw; where those are too many,
// about once for each.
cudaError_t SampleTokens(const SampleArguments& arguments, cudaStream_t stream);

}  // namespace ferrite

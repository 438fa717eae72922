// Log-probabilities of given tokens and of the likeliest ones.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/sample.h"

namespace ferrite {

// What one row is told. Of the top ones, as many are written as the row asks for, or as the
// vocabulary has.
struct GpuRowLogprobs {
  static constexpr int kMaxTop = 20;

  float chosen;
  int32_t top_ids[kMaxTop];  // likeliest first, ties by id
  float top[kMaxTop];
};

struct LogprobsArguments {
  const float* logits = nullptr;  // [num_rows, vocab_size] fp32
  int32_t num_rows = 0;           // at most max_rows
  int32_t max_rows = 0;           // what the workspace is for; at most 65535
  int32_t vocab_size = 0;         // at most 2^18
  // How many likeliest tokens each row asks for, as in SamplingParams::num_logprobs: `wanted`
  // [num_rows] says so, or where it is null, the parameters of the row's slot do.
  const int32_t* wanted = nullptr;
  const GpuSamplingParams* params = nullptr;  // [max_sequences]
  const int32_t* row_slots = nullptr;         // [num_rows] index into params; -1: no row
  const int32_t* tokens = nullptr;            // [num_rows] what was sampled, or comes next
  GpuRowLogprobs* out = nullptr;              // [num_rows]; that of a row that asks not stays
  void* workspace = nullptr;                  // LogprobsWorkspaceBytes: zeros before the first call
};

// Workspace for up to `max_rows` rows.
size_t LogprobsWorkspaceBytes(int32_t max_rows, int32_t vocab_size);

// log_softmax of the logits as they are, with sums in fp32 (parts of a row in double); exact ids. A
// row's result depends on that row alone. Logits are read once, those of rows that ask not, not at
// all. Logits are finite; with others the ids are still distinct tokens.
cudaError_t ComputeLogprobs(const LogprobsArguments& arguments, cudaStream_t stream);

}  // namespace ferrite

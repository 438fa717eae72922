// Token embeddings.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/kernel_types.h"

namespace ferrite {

// Tokens on the device, and valid. Where `input_rows` is given and has a row, not -1, for a token,
// its id is sampled[input_rows[t]] instead.
struct TokenSource {
  const int32_t* token_ids = nullptr;   // [num_tokens]
  const int32_t* input_rows = nullptr;  // [num_tokens], or null
  const int32_t* sampled = nullptr;
};

// out[num_tokens, hidden] fp32 = table[token], table [vocab, hidden] of `type`. hidden is a
// multiple of 8 or any other number (slower).
cudaError_t GatherEmbeddings(GpuType type, const void* table, const TokenSource& tokens,
                             int32_t num_tokens, int32_t hidden, float* out, cudaStream_t stream);

}  // namespace ferrite

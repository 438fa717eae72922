// Attention for the shapes that the fast kernels do not cover.
#pragma once

#include "cuda/kernels/attention.h"

namespace ferrite {

// Any head_dim up to 256, any block size, any number of tokens a sequence (`num_tokens` in all).
// One block a query row and head, no tensor cores.
cudaError_t PlainAttention(const AttentionArguments& arguments, int32_t num_tokens,
                           cudaStream_t stream);

}  // namespace ferrite

// Token embeddings.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/kernel_types.h"

namespace ferrite {

// out[num_tokens, hidden] fp32 = table[token_ids[t]], table [vocab, hidden] of `type`. hidden is a
// multiple of 8 or any other number (slower). token_ids are on the device and valid.
cudaError_t GatherEmbeddings(GpuType type, const void* table, const int32_t* token_ids,
                             int32_t num_tokens, int32_t hidden, float* out, cudaStream_t stream);

}  // namespace ferrite

// What happens to q, k and v between their projection and attention, in one pass: the norms of q
// and k heads (Qwen3), rotation, and the write of k and v to the paged cache.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/kernel_types.h"

namespace ferrite {

struct PrepareHeadsArguments {
  GpuType type = GpuType::kFp16;
  void* qkv = nullptr;                 // [num_tokens, num_heads + 2 kv_heads, head_dim], q in place
  const float* raw = nullptr;          // the same in fp32, or null: read instead of qkv
  const int32_t* positions = nullptr;  // [num_tokens]
  const int32_t* slot_mapping = nullptr;  // [num_tokens] block * block_size + offset; -1: no write
  const float* cosines = nullptr;         // [max_positions, head_dim / 2] fp32
  const float* sines = nullptr;
  const float* q_norm = nullptr;  // [head_dim] fp32, or null
  const float* k_norm = nullptr;
  float epsilon = 0;
  int32_t num_tokens = 0;
  int32_t num_heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;  // even, at most 256
  int32_t block_size = 0;
  void* k_cache = nullptr;  // [num_blocks, kv_heads, block_size, head_dim] of the layer
  void* v_cache = nullptr;
};

// Pairs (x[i], x[i + head_dim / 2]) turn, as in Hugging Face checkpoints.
cudaError_t PrepareHeads(const PrepareHeadsArguments& arguments, cudaStream_t stream);

}  // namespace ferrite

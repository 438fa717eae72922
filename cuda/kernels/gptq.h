// GPTQ's INT4 layout (arxiv.org/abs/2210.17323; engine/model/gptq.h) on the device.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/int4_weight.h"
#include "cuda/kernels/kernel_types.h"

namespace ferrite {

// As a checkpoint has it, in device memory.
struct GptqWeight {
  const uint32_t* qweight = nullptr;  // [inputs / 8, outputs]
  const uint16_t* scales = nullptr;   // [groups, outputs] of scale_type
  GpuType scale_type = GpuType::kFp16;
  const uint32_t* qzeros = nullptr;  // [groups, outputs / 8], or null: all zero points are 8
  bool zeros_less_one = false;       // qzeros + 0x11111111 modulo 2^32 are the zero points
  const int32_t* g_idx = nullptr;    // [inputs] in [0, groups), or null: input k / group_size
  int32_t inputs = 0;                // a multiple of 8 and of group_size
  int32_t outputs = 0;               // a multiple of 8
  int32_t group_size = 0;
};

// out[count, inputs] of `type` = outputs [first, first + count) of W, scale * (q - zero) rounded
// once.
cudaError_t DequantizeGptq(const GptqWeight& weight, int32_t first, int32_t count, GpuType type,
                           void* out, cudaStream_t stream);
// The same of the tiles; out's inputs are in the order of x, not of the tiles. fp16 scales.
cudaError_t DequantizeInt4(const Int4Weight& weight, int32_t first, int32_t count, GpuType type,
                           void* out, cudaStream_t stream);

// Fills what `tiles` points to from `weight`, which has fp16 scales: tiles, scales, and zeros
// unless null; input k of the tiles is input order[k] of `weight`, and with that order the groups
// follow each other.
cudaError_t RepackGptq(const GptqWeight& weight, const Int4Weight& tiles, cudaStream_t stream);

}  // namespace ferrite

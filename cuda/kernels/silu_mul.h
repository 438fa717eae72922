// The gated activation of the MLP.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/kernel_types.h"

namespace ferrite {

// out[rows, width] of `type` = silu(gate_up[r, 0..width)) * gate_up[r, width..2 width), where
// gate_up is of `type` or, with `is_fp32`, fp32.
cudaError_t SiluMul(GpuType type, const void* gate_up, bool is_fp32, int32_t rows, int32_t width,
                    void* out, cudaStream_t stream);

}  // namespace ferrite

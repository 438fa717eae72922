// The gated activation of the MLP.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/kernel_types.h"

namespace ferrite {

// out[rows, width] = silu(gate_up[r, 0..width)) * gate_up[r, width..2 width).
cudaError_t SiluMul(GpuType type, const void* gate_up, int32_t rows, int32_t width, void* out,
                    cudaStream_t stream);

}  // namespace ferrite

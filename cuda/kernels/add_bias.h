// Biases of products that cuBLAS makes; our own add theirs themselves.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/kernel_types.h"

namespace ferrite {

// y[rows, width] of `type` += bias[width] fp32.
cudaError_t AddBias(GpuType type, const float* bias, int32_t rows, int32_t width, void* y,
                    cudaStream_t stream);
// The same for y in fp32.
cudaError_t AddBiasFp32(const float* bias, int32_t rows, int32_t width, float* y,
                        cudaStream_t stream);

}  // namespace ferrite

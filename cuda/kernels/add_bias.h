// Biases of products that cuBLAS makes; our own add theirs themselves.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/kernel_types.h"

namespace ferrite {

// y[rows, width] of `type` += bias[width] fp32, where rows of y are `y_stride` elements apart.
cudaError_t AddBias(GpuType type, const float* bias, int32_t rows, int32_t width, void* y,
                    int32_t y_stride, cudaStream_t stream);
// The same for y in fp32.
cudaError_t AddBiasFp32(const float* bias, int32_t rows, int32_t width, float* y, int32_t y_stride,
                        cudaStream_t stream);

}  // namespace ferrite

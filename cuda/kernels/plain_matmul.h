// Products for the shapes that cuBLASLt has no fixed algorithms for.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/kernels/kernel_types.h"
#include "cuda/kernels/matmul_arguments.h"

namespace ferrite {

// Any shape. One warp a value, no tensor cores; a value's bits depend on its row of x, its row of W
// and what it is added to alone.
cudaError_t PlainMatmul(GpuType type, const GpuMatmulArguments& arguments, cudaStream_t stream);

}  // namespace ferrite

// StreamInt4 on a device smaller than the one there is, for tests.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/device_limits.h"
#include "cuda/kernels/stream_int4.h"

namespace ferrite::stream_int4 {

// As StreamInt4 and SizeStreamInt4Scratch, on a device of no more than that.
cudaError_t Run(const StreamMatmulArguments& arguments, const Int4Weight& weight,
                const DeviceLimits& limits, cudaStream_t stream);
cudaError_t SizeScratch(const StreamMatmulArguments& arguments, const Int4Weight& weight,
                        const DeviceLimits& limits, StreamMatmulScratch* scratch);

}  // namespace ferrite::stream_int4

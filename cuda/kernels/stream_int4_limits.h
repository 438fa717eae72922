// StreamInt4 on a device smaller than the one there is, for tests.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/stream_int4.h"

namespace ferrite::stream_int4 {

struct DeviceLimits {
  int multiprocessors = 0;
  int block_shared_bytes = 0;
};

// As StreamInt4 and SizeStreamInt4Scratch, on a device of no more than that.
cudaError_t Run(const StreamMatmulArguments& arguments, const Int4Weight& weight,
                const DeviceLimits& limits, cudaStream_t stream);
cudaError_t SizeScratch(const StreamMatmulArguments& arguments, const Int4Weight& weight,
                        const DeviceLimits& limits, StreamMatmulScratch* scratch);

cudaError_t GetDeviceLimits(DeviceLimits* limits);

}  // namespace ferrite::stream_int4

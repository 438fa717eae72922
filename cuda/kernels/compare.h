// Whether two buffers hold the same bits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace ferrite {

// *count = in how many 16-bit words `bytes` bytes at `a` and at `b` differ; both are even, as is
// `bytes`. *count is in device memory.
cudaError_t CountDifferences(const void* a, const void* b, int64_t bytes, uint32_t* count,
                             cudaStream_t stream);

}  // namespace ferrite

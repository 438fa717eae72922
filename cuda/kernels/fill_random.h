// Random values for benchmarks.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/kernel_types.h"

namespace ferrite {

// out[size] = mean + deviation * z, with z about normal: the sum of four uniform numbers (Irwin and
// Hall), so at most 3.464 away from 0. Element i depends on seed and i alone.
cudaError_t FillRandom(GpuType type, void* out, int64_t size, float mean, float deviation,
                       uint64_t seed, cudaStream_t stream);
cudaError_t FillRandom(float* out, int64_t size, float mean, float deviation, uint64_t seed,
                       cudaStream_t stream);

// out[size] = random bits, but 0 where `mask` is 0. Word i depends on seed and i alone.
cudaError_t FillRandomBits(uint32_t* out, int64_t size, uint32_t mask, uint64_t seed,
                           cudaStream_t stream);

}  // namespace ferrite

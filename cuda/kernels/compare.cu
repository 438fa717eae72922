#include <algorithm>

#include "cuda/kernels/compare.h"

namespace ferrite {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1024;

__global__ void CountKernel(const uint16_t* a, const uint16_t* b, int64_t size, uint32_t* count) {
  uint32_t differences = 0;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size;
       i += int64_t{gridDim.x} * kThreads) {
    differences += a[i] != b[i] ? 1 : 0;
  }
  if (differences != 0) {
    atomicAdd(count, differences);
  }
}

}  // namespace

cudaError_t CountDifferences(const void* a, const void* b, int64_t bytes, uint32_t* count,
                             cudaStream_t stream) {
  if (const cudaError_t error = cudaMemsetAsync(count, 0, sizeof(*count), stream);
      error != cudaSuccess || bytes == 0) {
    return error;
  }
  const int64_t size = bytes / 2;
  const auto blocks =
      static_cast<unsigned>(std::min(kMostBlocks, (size + kThreads - 1) / kThreads));
  CountKernel<<<blocks, kThreads, 0, stream>>>(static_cast<const uint16_t*>(a),
                                               static_cast<const uint16_t*>(b), size, count);
  return cudaGetLastError();
}

}  // namespace ferrite

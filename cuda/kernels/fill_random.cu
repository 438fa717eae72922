#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "cuda/kernels/fill_random.h"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/vector.cuh"

namespace ferrite {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 65536;

// The output function of SplitMix64, https://doi.org/10.1145/2714064.2660195.
__device__ uint64_t Hash(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

__device__ uint64_t RandomBits(uint64_t seed, int64_t i) {
  return Hash(Hash(seed) + static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15u);
}

__device__ float AboutNormal(uint64_t seed, int64_t i) {
  const uint64_t bits = RandomBits(seed, i);
  const uint64_t sum =
      (bits & 0xFFFF) + (bits >> 16 & 0xFFFF) + (bits >> 32 & 0xFFFF) + (bits >> 48);
  // Four uniform numbers sum to 2 on average, with variance 1/3.
  return (static_cast<float>(sum) * (1.0f / 65535.0f) - 2.0f) * 1.7320508f;
}

__device__ void Store(float value, float* to) { *to = value; }
__device__ void Store(float value, __half* to) { *to = FromFloat<__half>(value); }
__device__ void Store(float value, __nv_bfloat16* to) { *to = FromFloat<__nv_bfloat16>(value); }

template <typename T>
__global__ void FillRandomKernel(T* out, int64_t size, float mean, float deviation, uint64_t seed) {
  AllowNext();
  WaitForPrevious();
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += stride) {
    Store(mean + deviation * AboutNormal(seed, i), out + i);
  }
}

__global__ void FillRandomBitsKernel(uint32_t* out, int64_t size, uint32_t mask, uint64_t seed) {
  AllowNext();
  WaitForPrevious();
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < size; i += stride) {
    out[i] = static_cast<uint32_t>(RandomBits(seed, i)) & mask;
  }
}

unsigned Blocks(int64_t size) {
  return static_cast<unsigned>(std::min((size + kThreads - 1) / kThreads, kMaxBlocks));
}

template <typename T>
cudaError_t Launch(T* out, int64_t size, float mean, float deviation, uint64_t seed,
                   cudaStream_t stream) {
  if (size <= 0) {
    return cudaSuccess;
  }
  return LaunchOverlapped(FillRandomKernel<T>, Blocks(size), kThreads, 0, stream, out, size, mean,
                          deviation, seed);
}

}  // namespace

cudaError_t FillRandom(GpuType type, void* out, int64_t size, float mean, float deviation,
                       uint64_t seed, cudaStream_t stream) {
  return type == GpuType::kFp16
             ? Launch(static_cast<__half*>(out), size, mean, deviation, seed, stream)
             : Launch(static_cast<__nv_bfloat16*>(out), size, mean, deviation, seed, stream);
}

cudaError_t FillRandom(float* out, int64_t size, float mean, float deviation, uint64_t seed,
                       cudaStream_t stream) {
  return Launch(out, size, mean, deviation, seed, stream);
}

cudaError_t FillRandomBits(uint32_t* out, int64_t size, uint32_t mask, uint64_t seed,
                           cudaStream_t stream) {
  if (size <= 0) {
    return cudaSuccess;
  }
  return LaunchOverlapped(FillRandomBitsKernel, Blocks(size), kThreads, 0, stream, out, size, mask,
                          seed);
}

}  // namespace ferrite

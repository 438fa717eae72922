#include "cuda/kernels/rms_norm.h"

#include <algorithm>

#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/vector.cuh"

namespace ferrite {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kWarpSize = 32;
// From here on there are blocks enough to fill a GPU: fewer threads a row then cost less to
// synchronise.
constexpr int kManyRows = 128;
constexpr int kThreadsOfMany = 256;
constexpr int kMaxChunks = 4;  // more would not fit the registers of kMaxThreads

// The sum over the block, the same on every thread.
__device__ float BlockSum(float value) {
  __shared__ float sums[kMaxThreads / kWarpSize];
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(~0u, value, offset);
  }
  if (threadIdx.x % kWarpSize == 0) {
    sums[threadIdx.x / kWarpSize] = value;
  }
  __syncthreads();
  const unsigned lane = threadIdx.x % kWarpSize;
  value = lane < blockDim.x / kWarpSize ? sums[lane] : 0.0f;
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(~0u, value, offset);
  }
  return value;
}

__device__ float* ResidualRow(const RmsNormArguments& a) {
  const int64_t row = a.rows != nullptr ? a.rows[blockIdx.x] : static_cast<int>(blockIdx.x);
  return a.residual + row * a.hidden;
}

// A block a row, held in registers: kChunks groups of four values a thread.
template <typename T, int kChunks>
__global__ __launch_bounds__(kMaxThreads) void RmsNormKernel(RmsNormArguments a) {
  const int32_t stride = blockDim.x * 4;
  const int32_t first = threadIdx.x * 4;
  float weight[kChunks][4];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (first + c * stride < a.hidden) {
      LoadVector(a.weight + first + c * stride, weight[c]);
    }
  }
  AllowNext();
  WaitForPrevious();
  float* residual = ResidualRow(a);
  const int64_t row = int64_t{blockIdx.x} * a.hidden;
  float x[kChunks][4];
  float squares = 0;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int32_t i = first + c * stride;
    if (i < a.hidden) {
      LoadVector(residual + i, x[c]);
      if (a.delta != nullptr) {
        float delta[4];
        LoadVector(static_cast<const T*>(a.delta) + row + i, delta);
        for (int j = 0; j < 4; ++j) {
          x[c][j] += delta[j];
        }
        StoreVector(x[c], residual + i);
      }
      for (int j = 0; j < 4; ++j) {
        squares += x[c][j] * x[c][j];
      }
    }
  }
  const float scale = rsqrtf(BlockSum(squares) / static_cast<float>(a.hidden) + a.epsilon);
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int32_t i = first + c * stride;
    if (i < a.hidden) {
      for (int j = 0; j < 4; ++j) {
        x[c][j] *= scale * weight[c][j];
      }
      StoreVector(x[c], static_cast<T*>(a.out) + row + i);
    }
  }
}

// Any width: the row is read twice, one value at a time.
template <typename T>
__global__ __launch_bounds__(kMaxThreads) void RmsNormAnyWidth(RmsNormArguments a) {
  AllowNext();
  WaitForPrevious();
  float* residual = ResidualRow(a);
  const int64_t row = int64_t{blockIdx.x} * a.hidden;
  float squares = 0;
  for (int32_t i = threadIdx.x; i < a.hidden; i += blockDim.x) {
    float x = residual[i];
    if (a.delta != nullptr) {
      x += ToFloat(static_cast<const T*>(a.delta)[row + i]);
      residual[i] = x;
    }
    squares += x * x;
  }
  const float scale = rsqrtf(BlockSum(squares) / static_cast<float>(a.hidden) + a.epsilon);
  for (int32_t i = threadIdx.x; i < a.hidden; i += blockDim.x) {
    static_cast<T*>(a.out)[row + i] = FromFloat<T>(residual[i] * (scale * a.weight[i]));
  }
}

int RoundUp(int value, int unit) { return (value + unit - 1) / unit * unit; }

template <typename T>
cudaError_t Launch(const RmsNormArguments& a, cudaStream_t stream) {
  if (a.hidden % 4 != 0 || a.hidden > kMaxThreads * 4 * kMaxChunks) {
    const int threads = std::min(RoundUp(a.hidden, kWarpSize), kMaxThreads);
    return LaunchOverlapped(RmsNormAnyWidth<T>, a.num_rows, threads, 0, stream, a);
  }
  const int vectors = a.hidden / 4;
  int threads = a.fixed || a.num_rows < kManyRows ? kMaxThreads : kThreadsOfMany;
  while (threads * kMaxChunks < vectors) {
    threads *= 2;
  }
  threads = std::min(threads, RoundUp(vectors, kWarpSize));
  const int chunks = (vectors + threads - 1) / threads;
  auto* kernel = chunks <= 1   ? RmsNormKernel<T, 1>
                 : chunks <= 2 ? RmsNormKernel<T, 2>
                               : RmsNormKernel<T, kMaxChunks>;
  return LaunchOverlapped(kernel, a.num_rows, threads, 0, stream, a);
}

}  // namespace

cudaError_t RmsNorm(const RmsNormArguments& arguments, cudaStream_t stream) {
  return arguments.type == GpuType::kFp16 ? Launch<__half>(arguments, stream)
                                          : Launch<__nv_bfloat16>(arguments, stream);
}

}  // namespace ferrite

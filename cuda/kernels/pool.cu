#include "cuda/kernels/pool.h"

#include "cuda/kernels/launch.cuh"

namespace ferrite {
namespace {

constexpr int kWarpSize = 32;
constexpr int kWarps = 8;     // a block of ScaleTokens
constexpr int kColumns = 32;  // a block of SumTokens
constexpr int kTokenLanes = 16;

// grid [groups of kWarps tokens, items]. scales[t] is what the norm multiplies token t by.
__global__ __launch_bounds__(kWarps* kWarpSize) void ScaleTokens(PoolArguments a) {
  AllowNext();
  WaitForPrevious();
  const PoolItem item = a.items[blockIdx.y];
  const auto lane = static_cast<int32_t>(threadIdx.x % kWarpSize);
  const auto index = static_cast<int32_t>(blockIdx.x * kWarps + threadIdx.x / kWarpSize);
  if (index >= item.num_tokens) {
    return;
  }
  const int64_t token = item.first_token + index;
  const float* row = a.residual + token * a.hidden;
  float squares = 0;
#pragma unroll 8
  for (int32_t i = lane; i < a.hidden; i += kWarpSize) {
    squares += row[i] * row[i];
  }
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    squares += __shfl_xor_sync(~0u, squares, offset);
  }
  if (lane == 0) {
    a.scales[token] = rsqrtf(squares / static_cast<float>(a.hidden) + a.epsilon);
  }
}

// grid [groups of kColumns columns, items], block [kColumns, kTokenLanes].
__global__ __launch_bounds__(kColumns* kTokenLanes) void SumTokens(PoolArguments a) {
  __shared__ float lanes[kTokenLanes][kColumns];
  AllowNext();
  WaitForPrevious();
  const PoolItem item = a.items[blockIdx.y];
  const auto column = static_cast<int32_t>(blockIdx.x * kColumns + threadIdx.x);
  const bool is_column = column < a.hidden;
  const float* scales = a.scales + item.first_token;
  const float* values = a.residual + int64_t{item.first_token} * a.hidden + column;
  float* kept = &a.sums[int64_t{item.slot} * a.hidden + column];
  const auto finish = [&](float sum) {
    if (item.out < 0) {
      *kept = sum;
    } else {
      a.out[int64_t{item.out} * a.hidden + column] = sum / static_cast<float>(item.divisor);
    }
  };
  if (a.in_order) {
    if (threadIdx.y == 0 && is_column) {
      float sum = item.adds != 0 ? *kept : 0;
      for (int32_t t = 0; t < item.num_tokens; ++t) {
        sum += values[int64_t{t} * a.hidden] * scales[t] * a.weight[column];
      }
      finish(sum);
    }
    return;
  }
  float sum = 0;
#pragma unroll 4
  for (auto t = static_cast<int32_t>(threadIdx.y); is_column && t < item.num_tokens;
       t += kTokenLanes) {
    sum += values[int64_t{t} * a.hidden] * scales[t];
  }
  lanes[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || !is_column) {
    return;
  }
  for (int lane = 1; lane < kTokenLanes; ++lane) {
    sum += lanes[lane][threadIdx.x];
  }
  sum *= a.weight[column];
  finish(sum + (item.adds != 0 ? *kept : 0));
}

}  // namespace

cudaError_t Pool(const PoolArguments& a, cudaStream_t stream) {
  if (a.num_items == 0) {
    return cudaSuccess;
  }
  const dim3 tokens((a.max_tokens + kWarps - 1) / kWarps, a.num_items);
  if (const cudaError_t error =
          LaunchOverlapped(ScaleTokens, tokens, kWarps * kWarpSize, 0, stream, a);
      error != cudaSuccess) {
    return error;
  }
  const dim3 columns((a.hidden + kColumns - 1) / kColumns, a.num_items);
  return LaunchOverlapped(SumTokens, columns, dim3(kColumns, kTokenLanes), 0, stream, a);
}

}  // namespace ferrite

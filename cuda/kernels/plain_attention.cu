#include "cuda/kernels/plain_attention.h"

#include <algorithm>

#include "cuda/kernels/attention_parts.cuh"
#include "cuda/kernels/launch.cuh"

namespace ferrite {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxHeadDim = 256;
constexpr int kDimsPerLane = kMaxHeadDim / 32;
constexpr int kMaxRowBlocks = 256;  // blocks that share a sequence's rows
constexpr float kLog2E = 1.4426950408889634f;

// A softmax under way: `sum` and `weighted` are relative to 2^maximum. Lane l has dimensions
// l, l + 32, ...
struct RunningSoftmax {
  float maximum = attention::kNoMaximum;
  float sum = 0;
  float weighted[kDimsPerLane] = {};
};

// The keys first + warp, first + warp + kWarps, ... of one row.
template <typename T>
__device__ RunningSoftmax AttendKeys(const AttentionArguments& a, const T* q, const int32_t* table,
                                     int kv_head, int first, int end) {
  const int lane = threadIdx.x % 32;
  float query[kDimsPerLane];
  for (int j = 0; j < kDimsPerLane; ++j) {
    const int d = lane + 32 * j;
    query[j] = d < a.head_dim ? ToFloat(q[d]) * a.scale * kLog2E : 0.0f;
  }
  RunningSoftmax state;
  for (int key = first + threadIdx.x / 32; key < end; key += kWarps) {
    const int64_t row = (int64_t{table[key / a.block_size]} * a.kv_heads + kv_head) * a.block_size +
                        key % a.block_size;
    const T* k = static_cast<const T*>(a.k_cache) + row * a.head_dim;
    const T* v = static_cast<const T*>(a.v_cache) + row * a.head_dim;
    float score = 0;
    for (int j = 0; j < kDimsPerLane; ++j) {
      const int d = lane + 32 * j;
      score += d < a.head_dim ? query[j] * ToFloat(k[d]) : 0.0f;
    }
    for (int mask = 16; mask > 0; mask /= 2) {
      score += __shfl_xor_sync(attention::kAllLanes, score, mask);
    }
    const float maximum = fmaxf(state.maximum, score);
    const float keep = exp2f(state.maximum - maximum);
    const float weight = exp2f(score - maximum);
    state.maximum = maximum;
    state.sum = state.sum * keep + weight;
    for (int j = 0; j < kDimsPerLane; ++j) {
      const int d = lane + 32 * j;
      state.weighted[j] =
          state.weighted[j] * keep + (d < a.head_dim ? weight * ToFloat(v[d]) : 0.0f);
    }
  }
  return state;
}

template <typename T>
__global__ void PlainAttentionKernel(AttentionArguments a) {
  __shared__ float weighted[kWarps][kMaxHeadDim];
  __shared__ float maxima[kWarps];
  __shared__ float sums[kWarps];
  AllowNext();
  WaitForPrevious();
  const int head = blockIdx.x;
  const int sequence = a.first_sequence + blockIdx.y;
  const int32_t slot = a.seq_slots[sequence];
  if (slot < 0) {
    return;
  }
  const int32_t first_row = a.cu_seqlens[sequence];
  const int32_t num_rows = a.cu_seqlens[sequence + 1] - first_row;
  const int32_t* table = a.block_tables + int64_t{slot} * a.blocks_per_slot;
  const int warp = threadIdx.x / 32;
  for (int r = blockIdx.z; r < num_rows; r += gridDim.z) {
    const int end = a.kv_lens[sequence] - num_rows + r + 1;
    const int first = a.window > 0 ? max(0, end - a.window) : 0;
    const int64_t row = first_row + r;
    const T* q =
        static_cast<const T*>(a.qkv) + (row * (a.num_heads + 2 * a.kv_heads) + head) * a.head_dim;
    const RunningSoftmax state =
        AttendKeys(a, q, table, head / (a.num_heads / a.kv_heads), first, end);
    for (int j = 0; j < kDimsPerLane; ++j) {
      weighted[warp][threadIdx.x % 32 + 32 * j] = state.weighted[j];
    }
    if (threadIdx.x % 32 == 0) {
      maxima[warp] = state.maximum;
      sums[warp] = state.sum;
    }
    __syncthreads();
    float maximum = maxima[0];
    for (int w = 1; w < kWarps; ++w) {
      maximum = fmaxf(maximum, maxima[w]);
    }
    T* out = static_cast<T*>(a.out) + (row * a.num_heads + head) * a.head_dim;
    for (int d = threadIdx.x; d < a.head_dim; d += blockDim.x) {
      float sum = 0;
      float value = 0;
      for (int w = 0; w < kWarps; ++w) {
        const float weight = exp2f(maxima[w] - maximum);
        sum += weight * sums[w];
        value += weight * weighted[w][d];
      }
      out[d] = FromFloat<T>(value / sum);
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t PlainAttention(const AttentionArguments& arguments, int32_t num_tokens,
                           cudaStream_t stream) {
  const dim3 grid(arguments.num_heads, arguments.num_sequences,
                  std::min(num_tokens, kMaxRowBlocks));
  return LaunchOverlapped(arguments.type == GpuType::kFp16 ? PlainAttentionKernel<__half>
                                                           : PlainAttentionKernel<__nv_bfloat16>,
                          grid, kWarps * 32, 0, stream, arguments);
}

}  // namespace ferrite

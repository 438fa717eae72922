// The activations of the weight-streaming product on their way to shared memory.
#pragma once

#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/stream_matmul.h"
#include "cuda/kernels/stream_matmul_parts.cuh"

namespace ferrite::stream_matmul {

// A block's threads are [teams][kThreads].
__device__ __forceinline__ int BlockThread() {
  return static_cast<int>(threadIdx.y) * kThreads + static_cast<int>(threadIdx.x);
}
__device__ __forceinline__ int BlockThreads() { return static_cast<int>(blockDim.y) * kThreads; }

// This block's slice of x in shared memory as [rows, plan.x_stride], zeros past the inputs. Calls
// `meanwhile` once the first loads are under way.
template <typename T, typename Meanwhile>
__device__ void LoadActivations(const StreamMatmulArguments& a, const Plan& plan, int begin, T* x,
                                const Meanwhile& meanwhile) {
  constexpr int kBatch = 4;
  const int row_pieces = plan.slice_inputs / 8;
  const int pieces = a.rows * row_pieces;
  for (int first = 0; first < pieces; first += BlockThreads() * kBatch) {
    uint4 bits[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int piece = first + BlockThread() + i * BlockThreads();
      const int row = piece / row_pieces;
      const int k = begin + (piece - row * row_pieces) * 8;
      bits[i] = make_uint4(0, 0, 0, 0);
      if (piece < pieces && k < a.inputs) {
        // Not through L1, which may hold what was there before the kernel ahead wrote.
        bits[i] = __ldcg(reinterpret_cast<const uint4*>(static_cast<const T*>(a.x) +
                                                        int64_t{row} * a.inputs + k));
      }
    }
    if (first == 0) {
      meanwhile();
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int piece = first + BlockThread() + i * BlockThreads();
      const int row = piece / row_pieces;
      if (piece < pieces) {
        *reinterpret_cast<uint4*>(x + row * plan.x_stride + (piece - row * row_pieces) * 8) =
            bits[i];
      }
    }
  }
}

__device__ __forceinline__ float WarpSum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFF, value, offset);
  }
  return value;
}

__device__ __forceinline__ float SquareSum(const float4& v) {
  return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
}

__device__ __forceinline__ void ScaleBy(const float4& value, float scale, const float4& weight,
                                        float* to) {
  to[0] = value.x * scale * weight.x;
  to[1] = value.y * scale * weight.y;
  to[2] = value.z * scale * weight.z;
  to[3] = value.w * scale * weight.w;
}

// scratch[row] = 1 / rms of the residual's row. `scratch` holds (segments of a row + 1) * rows.
inline __device__ void ComputeScales(const StreamMatmulArguments& a, float* scratch) {
  constexpr int kLoads = kSegment / 128;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int row_segments = (a.inputs + kSegment - 1) / kSegment;
  float* sums = scratch + a.rows;
#pragma unroll 2
  for (int segment = warp; segment < a.rows * row_segments; segment += kWarps) {
    const int row = segment / row_segments;
    const int begin = (segment - row * row_segments) * kSegment + lane * 4;
    const float* from = a.residual + int64_t{row} * a.inputs;
    float4 values[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int k = begin + i * 128;
      values[i] = k < a.inputs ? __ldcg(reinterpret_cast<const float4*>(from + k))
                               : make_float4(0, 0, 0, 0);
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      sum += SquareSum(values[i]);
    }
    sum = WarpSum(sum);
    if (lane == 0) {
      sums[segment] = sum;
    }
  }
  __syncthreads();
  for (int row = warp; row < a.rows; row += kWarps) {
    float sum = 0;
    for (int i = lane; i < row_segments; i += 32) {
      sum += sums[row * row_segments + i];
    }
    sum = WarpSum(sum);
    if (lane == 0) {
      scratch[row] = rsqrtf(sum / static_cast<float>(a.inputs) + a.epsilon);
    }
  }
  __syncthreads();
}

// NormActivations for one row of at most kPieces * 8 * BlockThreads() inputs, in one pass. Waits
// for the kernel ahead itself, with the norm's weights on their way; calls `before` ahead of that,
// and `meanwhile` once the row is under way. `scratch` is the block's.
template <int kPieces, typename T, typename Before, typename Meanwhile>
__device__ void NormRow(const StreamMatmulArguments& a, T* x, float* scratch, const Before& before,
                        const Meanwhile& meanwhile) {
  const auto* residual = reinterpret_cast<const float4*>(a.residual);
  const auto* norm = reinterpret_cast<const float4*>(a.norm_weight);
  const float4 zero = make_float4(0, 0, 0, 0);
  float4 weights[kPieces][2];
  float4 values[kPieces][2];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int piece = BlockThread() + i * BlockThreads();
    weights[i][0] = piece * 8 < a.inputs ? __ldg(norm + 2 * piece) : zero;
    weights[i][1] = piece * 8 < a.inputs ? __ldg(norm + 2 * piece + 1) : zero;
  }
  before();
  WaitForPrevious();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int piece = BlockThread() + i * BlockThreads();
    values[i][0] = piece * 8 < a.inputs ? __ldcg(residual + 2 * piece) : zero;
    values[i][1] = piece * 8 < a.inputs ? __ldcg(residual + 2 * piece + 1) : zero;
  }
  meanwhile();
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    sum += SquareSum(values[i][0]) + SquareSum(values[i][1]);
  }
  sum = WarpSum(sum);
  if (threadIdx.x % 32 == 0) {
    scratch[BlockThread() / 32] = sum;
  }
  __syncthreads();
  sum = 0;
  for (int warp = 0; warp < BlockThreads() / 32; ++warp) {
    sum += scratch[warp];
  }
  const float scale = rsqrtf(sum / static_cast<float>(a.inputs) + a.epsilon);
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int piece = BlockThread() + i * BlockThreads();
    float normed[8];
    ScaleBy(values[i][0], scale, weights[i][0], normed);
    ScaleBy(values[i][1], scale, weights[i][1], normed + 4);
    if (piece * 8 < RoundUp(a.inputs, kMaxStepInputs)) {
      StoreVector(normed, x + piece * 8);
    }
  }
}

// As LoadActivations, of the residual's RMS norm.
template <typename T>
__device__ void NormActivations(const StreamMatmulArguments& a, const Plan& plan, int begin, T* x,
                                float* scratch) {
  ComputeScales(a, scratch);
  const int row_pieces = plan.slice_inputs / 8;
#pragma unroll 2
  for (int piece = threadIdx.x; piece < a.rows * row_pieces; piece += kThreads) {
    const int row = piece / row_pieces;
    const int at = (piece - row * row_pieces) * 8;
    const int k = begin + at;
    float values[8] = {};
    if (k < a.inputs) {
      const auto* from = reinterpret_cast<const float4*>(a.residual + int64_t{row} * a.inputs + k);
      const auto* weights = reinterpret_cast<const float4*>(a.norm_weight + k);
      const float scale = scratch[row];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ScaleBy(__ldcg(from + i), scale, __ldg(weights + i), values + 4 * i);
      }
    }
    StoreVector(values, x + row * plan.x_stride + at);
  }
}

// Whether NormRow can take the block's activations.
template <int kPieces>
__device__ __forceinline__ bool IsNormRow(const StreamMatmulArguments& a, const Plan& plan) {
  return a.residual != nullptr && a.rows == 1 && plan.slices == 1 &&
         a.inputs <= kPieces * 8 * BlockThreads();
}

// Waits for the kernel ahead and puts this block's slice of the activations into x; `scratch` as in
// ComputeScales. The caller synchronises.
template <typename T>
__device__ void ReadActivations(const StreamMatmulArguments& a, const Plan& plan, int begin, T* x,
                                float* scratch) {
  constexpr int kRowPieces = 4;
  const auto nothing = [] {};
  if (IsNormRow<kRowPieces>(a, plan)) {
    NormRow<kRowPieces>(a, x, scratch, nothing, nothing);
    return;
  }
  WaitForPrevious();
  if (a.residual != nullptr) {
    NormActivations(a, plan, begin, x, scratch);
  } else {
    LoadActivations(a, plan, begin, x, nothing);
  }
}

}  // namespace ferrite::stream_matmul

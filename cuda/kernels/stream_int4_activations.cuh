// The activations of the 4-bit weight-streaming product on their way to shared memory, and their
// sums.
#pragma once

#include "cuda/kernels/stream_int4_parts.cuh"
#include "cuda/kernels/stream_matmul_activations.cuh"

namespace ferrite::stream_int4 {

// This block's slice of x, input k of it from order[k]; `scratch` has the norm's factors.
template <typename T>
__device__ void LoadOrdered(const StreamMatmulArguments& a, const stream_matmul::Plan& plan,
                            const int32_t* order, int begin, T* x, const float* scratch) {
#pragma unroll 4
  for (int k = threadIdx.x; k < plan.slice_inputs; k += kThreads) {
    const bool valid = begin + k < a.inputs;
    const int from = valid ? __ldg(order + begin + k) : 0;
    for (int row = 0; row < a.rows; ++row) {
      const int64_t at = int64_t{row} * a.inputs + from;
      T value = FromFloat<T>(0.0f);
      if (valid && a.residual != nullptr) {
        value = FromFloat<T>(__ldcg(a.residual + at) * scratch[row] * __ldg(a.norm_weight + from));
      } else if (valid) {
        value = __ldcg(static_cast<const T*>(a.x) + at);
      }
      x[row * plan.x_stride + k] = value;
    }
  }
}

// Waits for the kernel ahead and puts this block's slice of x into shared memory, with zeros up to
// a whole step. Calls `before` ahead of the wait, and `meanwhile` behind it, once x is under way
// where it can be. `scratch` is the block's, `team_floats` of it for each team.
template <typename T, typename Before, typename Meanwhile>
__device__ void ReadRows(const StreamMatmulArguments& all, const stream_matmul::Plan& full_plan,
                         const int32_t* order, int begin, T* x, float* scratch, int team_floats,
                         const Before& before, const Meanwhile& meanwhile) {
  using stream_matmul::RoundUp;
  constexpr int kRowPieces = 2;
  stream_matmul::Plan plan = full_plan;
  plan.slice_inputs =
      RoundUp(min(full_plan.slice_inputs, all.inputs - begin), stream_matmul::kMaxStepInputs);
  const int rest = RoundUp(plan.slice_inputs, kMaxStepInputs) - plan.slice_inputs;
  for (int i = stream_matmul::BlockThread(); i < all.rows * rest;
       i += stream_matmul::BlockThreads()) {
    const int row = i / rest;
    x[row * plan.x_stride + plan.slice_inputs + i - row * rest] = FromFloat<T>(0.0f);
  }
  if (order == nullptr && stream_matmul::IsNormRow<kRowPieces>(all, plan)) {
    stream_matmul::NormRow<kRowPieces>(all, x, scratch, before, meanwhile);
    return;
  }
  before();
  WaitForPrevious();
  if (order == nullptr && all.residual == nullptr) {
    stream_matmul::LoadActivations(all, plan, begin, x, meanwhile);
    return;
  }
  meanwhile();
  // A team takes some of the rows; a single row both work out, and write the same: the barriers of
  // its norm are the block's.
  StreamMatmulArguments a = all;
  if (blockDim.y > 1 && (a.rows > 1 || a.residual == nullptr)) {
    const int low = (a.rows + 1) / 2;
    const int first = threadIdx.y == 0 ? 0 : low;
    a.rows = threadIdx.y == 0 ? low : a.rows - low;
    a.x = a.x == nullptr ? nullptr : static_cast<const T*>(a.x) + int64_t{first} * a.inputs;
    a.residual = a.residual == nullptr ? nullptr : a.residual + int64_t{first} * a.inputs;
    x += first * plan.x_stride;
  }
  scratch += threadIdx.y * team_floats;
  if (order == nullptr) {
    stream_matmul::NormActivations(a, plan, begin, x, scratch);
    return;
  }
  if (a.residual != nullptr) {
    stream_matmul::ComputeScales(a, scratch);
  }
  LoadOrdered(a, plan, order, begin, x, scratch);
}

// sums[chunk, row] = the sum of x over a chunk's inputs, in the unit of Nibbles' products: what a
// weight of one makes. A tensor-core step takes 16 inputs of 16 chunks, each chunk's in an order of
// its own, so that eight chunks' meet all banks once.
template <typename T, int kChunk>
__device__ void SumChunks(const Plan& plan, int rows, int inputs, const T* x, float* sums) {
  constexpr uint32_t kOnes = Nibbles<T>::kOnes;
  constexpr int kPieces = kChunk / 8;
  constexpr int kWays = kPieces < 8 ? kPieces / 2 : 4;  // sums that go side by side
  const int lane = threadIdx.x % 32;
  const int chunks = inputs / kChunk;
  const int strips = (chunks + 15) / 16;
  const int piece = lane / 16 + (kChunk == 32 ? lane % 16 / 2 : lane % 16);
  int row = 0;
  int strip = threadIdx.y * kWarps + threadIdx.x / 32;
  for (;; strip += blockDim.y * kWarps) {
    for (; strip >= strips; strip -= strips) {
      ++row;
    }
    if (row >= rows) {
      return;
    }
    const int chunk = min(strip * 16 + lane % 16, chunks - 1);
    const uint32_t at =
        stream_matmul::SharedAddress(x + row * plan.shape.x_stride + chunk * kChunk);
    float products[kWays][4] = {};
#pragma unroll
    for (int i = 0; i < kPieces; i += 2 * kWays) {
#pragma unroll
      for (int j = 0; j < kWays; ++j) {
        const uint4 bits = LoadMatrices(at + (piece + i + 2 * j) % kPieces * 16);
        stream_matmul::Multiply<T>(products[j], bits.x, bits.y, bits.z, bits.w, kOnes, kOnes);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int to = strip * 16 + lane / 4 + i * 8;
      if (lane % 4 == 0 && to < chunks) {
        float sum = 0;
#pragma unroll
        for (int j = 0; j < kWays; ++j) {
          sum += products[j][2 * i];
        }
        sums[to * plan.sums_stride + row] = sum * (1.0f / Nibbles<T>::kScale);
      }
    }
  }
}

// Activations in shared memory, as a lane reads them.
struct Activations {
  uint32_t row = 0;             // where its row of matrices begins
  const float* sums = nullptr;  // of a chunk's inputs, from the first of its two rows on
  float unit = 1;               // of digits
};

// ReadRows and SumChunks, to shared memory at `to`. Synchronises.
template <typename T, int kChunk, typename Before, typename Meanwhile>
__device__ Activations RowsToShared(const StreamMatmulArguments& a, const Plan& plan,
                                    const int32_t* order, int begin, char* to, float* scratch,
                                    int team_floats, const Before& before,
                                    const Meanwhile& meanwhile) {
  const int lane = threadIdx.x % 32;
  const int stride = plan.shape.x_stride;
  const int inputs = min(plan.shape.slice_inputs, a.inputs - begin);
  T* x = reinterpret_cast<T*>(to);
  float* sums = reinterpret_cast<float*>(x + a.rows * stride);
  ReadRows(a, plan.shape, order, begin, x, scratch, team_floats, before, meanwhile);
  __syncthreads();
  SumChunks<T, kChunk>(plan, a.rows, stream_matmul::RoundUp(inputs, kMaxStepInputs), x, sums);
  __syncthreads();
  // Rows past the last read that one: what comes of them is not looked at.
  return {
      .row = stream_matmul::SharedAddress(x + min(lane % 8, a.rows - 1) * stride + lane / 8 * 8),
      .sums = sums + min(lane % 4, (a.rows - 1) / 2) * 2};
}

}  // namespace ferrite::stream_int4

// What becomes of a unit's sums: the warps' added up, the slices', and the epilogue.
#pragma once

#include "cuda/kernels/stream_int4_plan.cuh"

namespace ferrite::stream_int4 {

using stream_matmul::WaitBarrier;
using Epilogue = StreamMatmulArguments::Epilogue;

// A lane has four of a tile's 16 outputs x 8 rows: outputs lane / 4, and lane / 4 + 8 from i = 2
// on; rows lane % 4 * 2 and the next.
__device__ __forceinline__ int OutputOf(int unit, int i) {
  return unit * kInt4TileOutputs + static_cast<int>(threadIdx.x % 32 / 4) + i / 2 * 8;
}
__device__ __forceinline__ int RowOf(int i) {
  return static_cast<int>(threadIdx.x % 4) * 2 + i % 2;
}

// What a unit's sums are added to: bias, and for kAdd what is there already. To be read long before
// the sums are there.
template <int kTiles>
__device__ void ReadStart(const StreamMatmulArguments& a, int unit, float (&start)[kTiles][4]) {
  const int width = a.outputs / kTiles;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int output = OutputOf(unit, i);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      start[tile][i] = a.bias != nullptr ? __ldg(a.bias + tile * width + output) : 0.0f;
    }
    if (a.epilogue == Epilogue::kAdd && RowOf(i) < a.rows) {
      start[0][i] += __ldcg(static_cast<float*>(a.y) + int64_t{RowOf(i)} * width + output);
    }
  }
}

template <typename T, int kTiles>
__device__ void WriteUnit(const StreamMatmulArguments& a, int unit,
                          const float (&sums)[kTiles][4]) {
  const int width = a.outputs / kTiles;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (RowOf(i) >= a.rows) {
      continue;
    }
    const int64_t at = int64_t{RowOf(i)} * width + OutputOf(unit, i);
    const float sum = sums[0][i];
    if (kTiles == 2) {
      static_cast<T*>(a.y)[at] = FromFloat<T>(sum / (1.0f + __expf(-sum)) * sums[kTiles - 1][i]);
    } else if (a.epilogue == Epilogue::kStore) {
      static_cast<T*>(a.y)[at] = FromFloat<T>(sum);
    } else {
      static_cast<float*>(a.y)[at] = sum;
    }
  }
}

__device__ __forceinline__ void AddTo(float (&sums)[4], const float4& value) {
  sums[0] += value.x;
  sums[1] += value.y;
  sums[2] += value.z;
  sums[3] += value.w;
}

// Where a lane's part of a slice of a unit lies: [units, slices, kTiles, 32 lanes].
template <int kTiles>
__device__ float4* Partials(const StreamMatmulArguments& a, const stream_matmul::Plan& plan,
                            int unit, int slice) {
  return reinterpret_cast<float4*>(a.partials) +
         (int64_t{unit} * plan.slices + slice) * kTiles * 32 + threadIdx.x % 32;
}

// One warp adds up what all of the block's have of a unit, once they have put it, and writes its
// outputs or partials. `start` is ReadStart's where there is one slice, else zeros.
template <typename T, int kTiles>
__device__ void FinishUnit(const StreamMatmulArguments& a, const stream_matmul::Plan& plan,
                           int unit, int slice, const float4* sums_of_warps, uint64_t* filled,
                           int parity, const float (&start)[kTiles][4]) {
  float sums[kTiles][4];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[tile][i] = start[tile][i];
    }
  }
  WaitBarrier(filled, parity);
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      AddTo(sums[tile], sums_of_warps[(warp * kTiles + tile) * 32 + threadIdx.x % 32]);
    }
  }
  if (plan.slices == 1) {
    WriteUnit<T, kTiles>(a, unit, sums);
    return;
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    __stcg(Partials<kTiles>(a, plan, unit, slice) + tile * 32,
           make_float4(sums[tile][0], sums[tile][1], sums[tile][2], sums[tile][3]));
  }
}

// The last block of a group to come here adds the slices of all of the group's units, in order.
template <typename T, int kTiles>
__device__ void CombineSlices(const StreamMatmulArguments& a, const stream_matmul::Plan& plan,
                              int group) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  const bool first_thread = threadIdx.x + threadIdx.y == 0;
  if (first_thread) {
    last = atomicAdd(a.counters + group, 1) == plan.slices - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last) {
    return;
  }
  const int groups = plan.blocks / plan.slices;
  const int warp = static_cast<int>(threadIdx.y * kWarps + threadIdx.x / 32);
  for (int unit = group + warp * groups; unit < plan.units; unit += blockDim.y * kWarps * groups) {
    float sums[kTiles][4];
    ReadStart<kTiles>(a, unit, sums);
#pragma unroll 4
    for (int slice = 0; slice < plan.slices; ++slice) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        AddTo(sums[tile], __ldcg(Partials<kTiles>(a, plan, unit, slice) + tile * 32));
      }
    }
    WriteUnit<T, kTiles>(a, unit, sums);
  }
  if (first_thread) {
    a.counters[group] = 0;
  }
}

}  // namespace ferrite::stream_int4

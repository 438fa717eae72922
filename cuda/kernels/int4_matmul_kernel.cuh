// The 4-bit product itself.
#pragma once

#include "cuda/kernels/int4_matmul_parts.cuh"
#include "cuda/kernels/launch.cuh"

namespace ferrite::int4_matmul {

// In the workspace: zero between products. For the tile whose inputs begin in a given block.
struct TileCounters {
  int32_t arrived;  // blocks whose part of the sums is in the workspace
  int32_t taken;    // slices of the tile that somebody adds up
  int32_t left;     // blocks that will not look at the counters again
};

struct Workspace {
  TileCounters* counters = nullptr;  // [blocks]
  float4* partials = nullptr;        // [blocks, 2, fragments, 32 lanes]
};

// A warp's sums, 64 outputs by kRowTiles times 8 rows. They are in units of the present group's
// scale and are converted when the next group begins, so that products add to them straight away.
template <typename T, typename S>
class WarpSums {
 public:
  __device__ __forceinline__ void Clear() {
    group_ = -1;
#pragma unroll
    for (int tile = 0; tile < kWarpTiles; ++tile) {
      scales_[tile][0] = scales_[tile][1] = 1;
#pragma unroll
      for (int i = 0; i < S::kRowTiles; ++i) {
        sums_[tile][i] = make_float4(0, 0, 0, 0);
      }
    }
  }

  // Adds the product of the stage's tile `input`, tile `index` of all inputs.
  __device__ __forceinline__ void Add(const Plan& plan, bool has_zeros, uint32_t stage, int input,
                                      int index) {
    const int lane = threadIdx.x % 32;
    const int warp_tile = threadIdx.x / 32 % S::kOutputWarps * kWarpTiles;
    const int first_row = threadIdx.x / 32 / S::kOutputWarps % S::kRowWarps * S::kRowTiles * 8;
    uint4 words[kWarpTiles];
#pragma unroll
    for (int tile = 0; tile < kWarpTiles; ++tile) {
      words[tile] =
          LoadShared(stage + (((warp_tile + tile) * S::kInputWarps + input) * 32 + lane) * 16);
    }
    const int row = first_row + lane / 16 * 8 + lane % 8;
    const uint32_t x = stage + Stage<S>::kXAt + (input * S::kRows + row) * kRowBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int group = plan.group_of(2 * index + half);
      if (group != group_) {
        ChangeGroup(stage, (input * 2 + half) * S::kTiles + warp_tile, has_zeros);
        group_ = group;
      }
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        uint32_t operands[S::kRowTiles][2];
#pragma unroll
        for (int j = 0; j < S::kRowTiles; j += 2) {
          LoadOperands(x + j * 8 * kRowBytes + ((2 * i + lane / 8 % 2) ^ (lane % 8)) * 16,
                       reinterpret_cast<uint32_t(&)[2][2]>(operands[j]));
        }
#pragma unroll
        for (int tile = 0; tile < kWarpTiles; ++tile) {
          const uint32_t word = i == 0   ? words[tile].x
                                : i == 1 ? words[tile].y
                                : i == 2 ? words[tile].z
                                         : words[tile].w;
          uint32_t w[4];
          Decode(word, zeros_[tile], w, static_cast<T*>(nullptr));
#pragma unroll
          for (int j = 0; j < S::kRowTiles; ++j) {
            Multiply<T>(reinterpret_cast<float(&)[4]>(sums_[tile][j]), w[0], w[1], w[2], w[3],
                        operands[j][0], operands[j][1]);
          }
        }
      }
    }
  }

  // To the units of the outputs.
  __device__ __forceinline__ void Finish() {
#pragma unroll
    for (int tile = 0; tile < kWarpTiles; ++tile) {
      ScaleBy(tile, scales_[tile][0], scales_[tile][1]);
    }
  }

  // Calls visit(fragment of the block, sums).
  template <typename Visit>
  __device__ __forceinline__ void ForEach(const Visit& visit) {
    const int first = threadIdx.x / 32 % S::kSumWarps * kWarpTiles * S::kRowTiles;
#pragma unroll
    for (int tile = 0; tile < kWarpTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < S::kRowTiles; ++i) {
        visit(first + tile * S::kRowTiles + i, sums_[tile][i]);
      }
    }
  }

 private:
  __device__ __forceinline__ void ScaleBy(int tile, float low, float high) {
#pragma unroll
    for (int i = 0; i < S::kRowTiles; ++i) {
      float4& sums = sums_[tile][i];
      sums = make_float4(sums.x * low, sums.y * low, sums.z * high, sums.w * high);
    }
  }

  __device__ __forceinline__ void ChangeGroup(uint32_t stage, int slot, bool has_zeros) {
    const int output = threadIdx.x % 32 / 4;
    const auto load_scale = [&](uint32_t from) {
      uint16_t bits;
      asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(from) : "memory");
      const float scale = __half2float(__ushort_as_half(bits));
      return scale == 0 ? 0x1p-60f : scale;  // something to divide by, and too small to matter
    };
    const auto load_zero = [&](uint32_t from) {
      uint32_t value;
      asm volatile("ld.shared.u8 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
      return value;
    };
#pragma unroll
    for (int tile = 0; tile < kWarpTiles; ++tile) {
      const uint32_t scales = stage + Stage<S>::kScalesAt + (slot + tile) * 32 + output * 2;
      const float low = load_scale(scales);
      const float high = load_scale(scales + 16);
      ScaleBy(tile, __fdividef(scales_[tile][0], low), __fdividef(scales_[tile][1], high));
      scales_[tile][0] = low;
      scales_[tile][1] = high;
      const uint32_t zeros = stage + Stage<S>::kZerosAt + (slot + tile) * 16 + output;
      zeros_[tile] =
          has_zeros ? MakeZeroPair(load_zero(zeros), load_zero(zeros + 8), static_cast<T*>(nullptr))
                    : MakeZeroPair(8, 8, static_cast<T*>(nullptr));
    }
  }

  float4 sums_[kWarpTiles][S::kRowTiles];
  float scales_[kWarpTiles][2];  // of outputs lane / 4 and that + 8 of the tiles
  ZeroPair zeros_[kWarpTiles];
  int group_;  // -1 before the first
};

template <typename T, typename S>
__device__ __forceinline__ void WriteBlockFragment(const Int4MatmulArguments& a, int output_block,
                                                   int row_block, int fragment,
                                                   const float4& sums) {
  const int warp = fragment / (kWarpTiles * S::kRowTiles);
  const int tile = fragment / S::kRowTiles % kWarpTiles;
  const int output =
      output_block * S::kOutputs + (warp % S::kOutputWarps * kWarpTiles + tile) * kInt4TileOutputs;
  const int row =
      row_block * S::kRows + (warp / S::kOutputWarps * S::kRowTiles + fragment % S::kRowTiles) * 8;
  WriteFragment<T>(a, output, row, sums);
}

template <typename S>
__device__ __forceinline__ float4* Partials(const Workspace& workspace, int block, int piece) {
  return workspace.partials + (int64_t{block} * 2 + piece) * S::kFragments * 32 + threadIdx.x % 32;
}

// Adds the sums of the warps that share outputs and rows into those of the first, which then writes
// the outputs, or its block's part of them to the workspace.
template <typename T, typename S>
__device__ __forceinline__ void FinishPiece(const Int4MatmulArguments& a,
                                            const Workspace& workspace, const Cursor& at,
                                            bool whole, int piece, float4* shared,
                                            WarpSums<T, S>& sums) {
  const int lane = threadIdx.x % 32;
  const int input_warp = threadIdx.x / 32 / S::kSumWarps;
  sums.Finish();
  if constexpr (S::kInputWarps > 1) {
    if (input_warp > 0) {
      sums.ForEach([&](int fragment, const float4& values) {
        shared[((input_warp - 1) * S::kFragments + fragment) * 32 + lane] = values;
      });
    }
    __syncthreads();
    if (input_warp > 0) {
      return;
    }
    sums.ForEach([&](int fragment, float4& values) {
#pragma unroll
      for (int warp = 0; warp < S::kInputWarps - 1; ++warp) {
        const float4 more = shared[(warp * S::kFragments + fragment) * 32 + lane];
        values =
            make_float4(values.x + more.x, values.y + more.y, values.z + more.z, values.w + more.w);
      }
    });
  }
  if (whole) {
    sums.ForEach([&](int fragment, const float4& values) {
      WriteBlockFragment<T, S>(a, at.output_block, at.row_block, fragment, values);
    });
  } else {
    float4* partials = Partials<S>(workspace, blockIdx.x, piece);
    sums.ForEach(
        [&](int fragment, const float4& values) { __stcg(partials + fragment * 32, values); });
    __threadfence();
  }
}

// Adds up, in the order of the inputs, the parts of a tile that several blocks have worked on. Each
// of them takes a slice once all parts are there. None waits for long, since not all might run at
// the same time: the last to arrive takes what is left.
template <typename T, typename S>
__device__ void CombineParts(const Int4MatmulArguments& a, const Plan& plan,
                             const Workspace& workspace, int tile, int arrival) {
  constexpr int kPolls = 2000;
  __shared__ int shared_slice;
  const int first = plan.BlockOf(tile * plan.steps);
  const int parts = plan.BlockOf((tile + 1) * plan.steps - 1) - first + 1;
  TileCounters* counters = workspace.counters + first;
  const bool last = arrival == parts - 1;
  bool more = true;
  while (more) {
    if (threadIdx.x == 0) {
      bool ready = last;
      for (int i = 0; i < kPolls && !ready; ++i) {
        ready = *static_cast<volatile int32_t*>(&counters->arrived) == parts;
      }
      __threadfence();
      shared_slice = ready ? atomicAdd(&counters->taken, 1) : parts;
    }
    __syncthreads();
    const int slice = shared_slice;
    __syncthreads();
    more = last && slice < parts;
    if (slice >= parts) {
      break;
    }
    const int end = (slice + 1) * S::kFragments / parts;
    for (int fragment = slice * S::kFragments / parts + threadIdx.x / 32; fragment < end;
         fragment += S::kWarps) {
      float4 sums = make_float4(0, 0, 0, 0);
#pragma unroll 4
      for (int block = first; block < first + parts; ++block) {
        const int piece = plan.FirstUnit(block) < tile * plan.steps;
        const float4 part = __ldcg(Partials<S>(workspace, block, piece) + fragment * 32);
        sums = make_float4(sums.x + part.x, sums.y + part.y, sums.z + part.z, sums.w + part.w);
      }
      WriteBlockFragment<T, S>(a, tile / plan.row_blocks, tile % plan.row_blocks, fragment, sums);
    }
  }
  if (threadIdx.x == 0 && atomicAdd(&counters->left, 1) == parts - 1) {
    *counters = {};
  }
}

template <typename T, typename S>
__global__ void __launch_bounds__(S::kThreads, S::kMinBlocks)
    Kernel(const __grid_constant__ Int4MatmulArguments a, const __grid_constant__ Plan plan,
           const Workspace workspace) {
  extern __shared__ __align__(128) char shared[];
  const uint32_t ring = SharedAddress(shared);
  const int begin = plan.FirstUnit(blockIdx.x);
  const int end = plan.FirstUnit(blockIdx.x + 1);
  AllowNext();

  Cursor ahead(plan, begin);
  for (int i = 0; i < S::kStages - 1; ++i) {
    if (begin + i < end) {
      StartWeights<S>(a.weight, plan, ahead, ring + i * Stage<S>::kBytes);
      ahead.Advance(plan);
    }
  }
  WaitForPrevious();
  Cursor at(plan, begin);
  ahead = at;
  for (int i = 0; i < S::kStages - 1; ++i) {
    if (begin + i < end) {
      StartRows<S>(a, plan, ahead, ring + i * Stage<S>::kBytes);
      ahead.Advance(plan);
    }
    CommitCopies();
  }

  WarpSums<T, S> sums;
  sums.Clear();
  int tiles[2];     // whose inputs this block shares with others: at most its first and its last
  int arrivals[2];  // how many were there before; known to the first thread
  int shared_tiles = 0;
  int first_step = at.step;
  int stage = 0;
  for (int unit = begin; unit < end; ++unit) {
    WaitCopies<S::kStages - 2>();
    __syncthreads();
    if (unit + S::kStages - 1 < end) {
      const int to = stage == 0 ? S::kStages - 1 : stage - 1;
      StartWeights<S>(a.weight, plan, ahead, ring + to * Stage<S>::kBytes);
      StartRows<S>(a, plan, ahead, ring + to * Stage<S>::kBytes);
      ahead.Advance(plan);
    }
    CommitCopies();
    const int input = threadIdx.x / 32 / S::kSumWarps;
    const int index = at.step * S::kInputWarps + input;
    if (index < plan.input_tiles) {
      sums.Add(plan, a.weight.zeros != nullptr, ring + stage * Stage<S>::kBytes, input, index);
    }
    stage = stage + 1 == S::kStages ? 0 : stage + 1;
    if (at.step + 1 == plan.steps || unit + 1 == end) {
      const bool whole = first_step == 0 && at.step + 1 == plan.steps;
      const int piece = begin < at.Tile(plan) * plan.steps;
      FinishPiece(a, workspace, at, whole, piece,
                  reinterpret_cast<float4*>(shared + S::kStages * Stage<S>::kBytes), sums);
      if (!whole) {
        tiles[shared_tiles] = at.Tile(plan);
        __syncthreads();
        if (threadIdx.x == 0) {
          const int first = plan.BlockOf(at.Tile(plan) * plan.steps);
          arrivals[shared_tiles] = atomicAdd(&workspace.counters[first].arrived, 1);
        }
        ++shared_tiles;
      }
      sums.Clear();
      first_step = 0;
    }
    at.Advance(plan);
  }
  for (int i = 0; i < shared_tiles; ++i) {
    const bool known = threadIdx.x == 0;
    const int arrival = __syncthreads_or(known ? arrivals[i] : 0);
    CombineParts<T, S>(a, plan, workspace, tiles[i], arrival);
  }
}

}  // namespace ferrite::int4_matmul

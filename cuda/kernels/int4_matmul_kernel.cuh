// The 4-bit product itself.
#pragma once

#include <algorithm>

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

template <typename T, typename S>
__device__ __forceinline__ void WriteBlockFragment(const Int4MatmulArguments& a, int output_block,
                                                   int row_block, int fragment,
                                                   const float4& sums) {
  const int output = output_block * S::kOutputs + fragment / (S::kRows / 8) * kInt4TileOutputs;
  const int row = row_block * S::kRows + fragment % (S::kRows / 8) * 8;
  WriteFragment<T>(a, output, row, sums);
}

template <typename S>
__device__ __forceinline__ float4* Partials(const Workspace& workspace, int block, int piece) {
  return workspace.partials + (int64_t{block} * 2 + piece) * S::kFragments * 32 + threadIdx.x % 32;
}

// Of the threads that sum, which may not be all.
template <typename S>
__device__ __forceinline__ void SyncSumming() {
  asm volatile("bar.sync 1, %0;" ::"n"(S::kThreads) : "memory");
}

// Adds the sums of the warps that share outputs and rows into those of the first, which then writes
// the outputs, or its block's part of them to the workspace.
template <typename T, typename S, typename Sums>
__device__ __forceinline__ void FinishPiece(const Int4MatmulArguments& a,
                                            const Workspace& workspace, const Cursor& at,
                                            bool whole, int piece, float4* shared, Sums& sums) {
  const int lane = threadIdx.x % 32;
  const int input_warp = threadIdx.x / 32 / S::kSumWarps;
  sums.Finish();
  if constexpr (S::kInputWarps > 1) {
    if (input_warp > 0) {
      sums.ForEach([&](int fragment, const float4& values) {
        shared[((input_warp - 1) * S::kFragments + fragment) * 32 + lane] = values;
      });
    }
    SyncSumming<S>();
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
// the same time: the last to arrive takes what is left. `arrival`, how many came before, is known
// to the first thread.
template <typename T, typename S>
__device__ void CombineParts(const Int4MatmulArguments& a, const Plan& plan,
                             const Workspace& workspace, int tile, int arrival) {
  constexpr int kPolls = 2000;
  constexpr int kLoads = 8;                             // of a lane at a time
  constexpr int kAtOnce = S::kRows < 128 ? 2 : kLoads;  // fragments of a warp
  __shared__ int taken;
  __shared__ bool is_last;
  const int first = plan.BlockOf(tile * plan.steps);
  const int parts = plan.BlockOf((tile + 1) * plan.steps - 1) - first + 1;
  TileCounters* counters = workspace.counters + first;
  bool last = false;
  do {
    if (threadIdx.x == 0) {
      bool ready = arrival == parts - 1;
      for (int i = 0; i < kPolls && !ready; ++i) {
        ready = *static_cast<volatile int32_t*>(&counters->arrived) == parts;
      }
      __threadfence();
      taken = ready ? atomicAdd(&counters->taken, 1) : parts;
      is_last = arrival == parts - 1;
    }
    SyncSumming<S>();
    const int slice = taken;
    last = is_last;
    SyncSumming<S>();
    if (slice >= parts) {
      break;
    }
    const int end = (slice + 1) * S::kFragments / parts;
    for (int fragment = slice * S::kFragments / parts + threadIdx.x / 32; fragment < end;
         fragment += kAtOnce * S::kWarps) {
      float4 sums[kAtOnce] = {};
#pragma unroll(kLoads / kAtOnce)
      for (int block = first; block < first + parts; ++block) {
        const int piece = plan.FirstUnit(block) < tile * plan.steps;
        const float4* partials = Partials<S>(workspace, block, piece);
        float4 more[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          more[i] = __ldcg(partials + min(fragment + i * S::kWarps, end - 1) * 32);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          sums[i] = make_float4(sums[i].x + more[i].x, sums[i].y + more[i].y, sums[i].z + more[i].z,
                                sums[i].w + more[i].w);
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (fragment + i * S::kWarps < end) {
          WriteBlockFragment<T, S>(a, tile / plan.row_blocks, tile % plan.row_blocks,
                                   fragment + i * S::kWarps, sums[i]);
        }
      }
    }
  } while (last);
  if (threadIdx.x == 0 && atomicAdd(&counters->left, 1) == parts - 1) {
    *counters = {};
  }
}

// How many blocks had finished their parts of the tiles that a block shares with others, at most
// its first and its last, before it; known to the first thread.
struct Arrivals {
  int before[2] = {};
  int tiles = 0;
};

// Ends a block's work on a tile, of which it had the inputs from at.step on: all of them if
// `whole`.
template <typename T, typename S, typename Sums>
__device__ __forceinline__ void FinishTile(const Int4MatmulArguments& a, const Plan& plan,
                                           const Workspace& workspace, const Cursor& at, int begin,
                                           bool whole, float4* shared, Sums& sums,
                                           Arrivals& arrivals) {
  const int tile = at.Tile(plan);
  FinishPiece<T, S>(a, workspace, at, whole, begin < tile * plan.steps, shared, sums);
  if (whole) {
    return;
  }
  SyncSumming<S>();
  if (threadIdx.x == 0) {
    const int first = plan.BlockOf(tile * plan.steps);
    const int before = atomicAdd(&workspace.counters[first].arrived, 1);
    arrivals.before[0] = arrivals.tiles == 0 ? before : arrivals.before[0];
    arrivals.before[1] = before;
  }
  ++arrivals.tiles;
}

// Adds up all of a block's tiles that are not its alone.
template <typename T, typename S>
__device__ __forceinline__ void CombineAll(const Int4MatmulArguments& a, const Plan& plan,
                                           const Workspace& workspace, int begin, int end,
                                           const Arrivals& arrivals) {
  const int first = begin / plan.steps;
  const int last = (end - 1) / plan.steps;
  int i = 0;
  if (begin != first * plan.steps || end < (first + 1) * plan.steps) {
    CombineParts<T, S>(a, plan, workspace, first, arrivals.before[i++]);
  }
  if (last != first && end != (last + 1) * plan.steps) {
    CombineParts<T, S>(a, plan, workspace, last, arrivals.before[i]);
  }
}

template <typename T, typename S, typename Sums>
__global__ void __launch_bounds__(S::kThreads, S::kMinBlocks)
    Kernel(const __grid_constant__ Int4MatmulArguments a, const __grid_constant__ Plan plan,
           const __grid_constant__ Workspace workspace) {
  extern __shared__ __align__(1024) char shared[];
  const uint32_t ring = SharedAddress(shared);
  const int begin = plan.FirstUnit(blockIdx.x);
  const int end = plan.FirstUnit(blockIdx.x + 1);
  AllowNext();

  Cursor ahead(plan, begin);
  for (int i = 0; i < S::kAhead; ++i) {
    if (begin + i < end) {
      StartWeights<S>(a.weight, plan, ahead, ring + i * Stage<S>::kBytes);
      ahead.Advance(plan);
    }
  }
  WaitForPrevious();
  Cursor at(plan, begin);
  ahead = at;
  for (int i = 0; i < S::kAhead; ++i) {
    if (begin + i < end) {
      StartRows<S>(a, plan, ahead, ring + i * Stage<S>::kBytes);
      ahead.Advance(plan);
    }
    CommitCopies();
  }

  Sums sums;
  Arrivals arrivals;
  int stage = 0;
  int unit = begin;
  while (unit < end) {
    const int tile_end = unit + plan.steps - at.step;
    const int piece_end = min(tile_end, end);
    const bool whole = at.step == 0 && piece_end == tile_end;
    sums.Clear();
    for (int step = at.step; unit < piece_end; ++unit, ++step) {
      WaitCopies<S::kAhead - 1>();
      Sums::BeforeBarrier();
      __syncthreads();
      if (unit + S::kAhead < end) {
        const int to = stage + S::kAhead - (stage + S::kAhead < S::kStages ? 0 : S::kStages);
        StartWeights<S>(a.weight, plan, ahead, ring + to * Stage<S>::kBytes);
        StartRows<S>(a, plan, ahead, ring + to * Stage<S>::kBytes);
        ahead.Advance(plan);
      }
      CommitCopies();
      sums.Add(plan, a.weight.zeros != nullptr, ring + stage * Stage<S>::kBytes, step);
      stage = stage + 1 == S::kStages ? 0 : stage + 1;
    }
    FinishTile<T, S>(a, plan, workspace, at, begin, whole,
                     reinterpret_cast<float4*>(shared + S::kStages * Stage<S>::kBytes), sums,
                     arrivals);
    at.step = plan.steps - 1;
    at.Advance(plan);
  }
  CombineAll<T, S>(a, plan, workspace, begin, end, arrivals);
}

inline constexpr int kMaxBlocks = 1024;
inline constexpr size_t kAlignment = 256;
inline constexpr size_t kCounterBytes = kMaxBlocks * sizeof(TileCounters);
static_assert(kCounterBytes % kAlignment == 0);

constexpr size_t Aligned(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

constexpr int Parts(int value, int size) { return (value + size - 1) / size; }

// For the sums of blocks that each share two tiles with others.
template <typename S>
constexpr size_t PartialBytes(int multiprocessors) {
  return size_t{2} * multiprocessors * S::kMinBlocks * S::kFragments * 32 * sizeof(float4);
}

template <typename S>
Plan MakePlan(const Int4MatmulArguments& a, int max_blocks) {
  const Int4Weight& w = a.weight;
  Plan plan;
  plan.input_tiles = w.inputs / kInt4TileInputs;
  plan.output_tiles = w.outputs / kInt4TileOutputs;
  plan.groups = w.inputs / w.group_size;
  plan.row_blocks = Parts(a.rows, S::kRows);
  plan.steps = Parts(plan.input_tiles, S::kStepTiles);
  const int units = Parts(plan.output_tiles, S::kTiles) * plan.row_blocks * plan.steps;
  plan.blocks = std::min({max_blocks, units, kMaxBlocks});
  plan.units = units / plan.blocks;
  plan.longer = units % plan.blocks;
  const uint32_t halves = w.group_size / (kInt4TileInputs / 2);
  plan.group_of = {halves, static_cast<uint32_t>(((uint64_t{1} << 32) + halves - 1) / halves)};
  return plan;
}

inline Workspace WorkspaceOf(const Int4MatmulArguments& a) {
  auto* bytes = static_cast<char*>(a.workspace);
  return {reinterpret_cast<TileCounters*>(bytes), reinterpret_cast<float4*>(bytes + kCounterBytes)};
}

// Lets the kernel have that much shared memory and plans for as many blocks as run at a time.
template <typename S>
cudaError_t Prepare(const void* kernel, int threads, int shared_bytes, const Int4MatmulArguments& a,
                    int multiprocessors, Plan* plan) {
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  int blocks = 0;  // of a multiprocessor
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes);
  }
  if (error == cudaSuccess) {
    *plan = MakePlan<S>(a, multiprocessors * std::clamp(blocks, 1, S::kMinBlocks));
  }
  return error;
}

// a.x is in the order of the weight already.
template <typename S>
cudaError_t LaunchKernel(void (*kernel)(Int4MatmulArguments, Plan, Workspace),
                         const Int4MatmulArguments& a, int multiprocessors, cudaStream_t stream) {
  Plan plan;
  const cudaError_t error = Prepare<S>(reinterpret_cast<const void*>(kernel), S::kThreads,
                                       SharedBytes<S>(), a, multiprocessors, &plan);
  return error != cudaSuccess ? error
                              : LaunchOverlapped(kernel, plan.blocks, S::kThreads, SharedBytes<S>(),
                                                 stream, a, plan, WorkspaceOf(a));
}

}  // namespace ferrite::int4_matmul

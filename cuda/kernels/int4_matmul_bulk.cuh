// How Hopper fills the ring of tiles in shared memory: by bulk copies, which one warp starts and
// the hardware does (cp.async.bulk, PTX ISA).
#pragma once

#include <cuda.h>

#include "cuda/kernels/int4_matmul_kernel.cuh"
#include "cuda/kernels/int4_matmul_wgmma.cuh"
#include "cuda/kernels/launch.cuh"

namespace ferrite::int4_matmul {

using stream_matmul::ArriveAtBarrier;
using stream_matmul::InitBarrier;
using stream_matmul::WaitBarrier;

inline constexpr int kScaleBytes = kInt4TileOutputs * 2;  // of a group of a tile's outputs
inline constexpr int kZeroBytes = kInt4TileOutputs;

// A stage: weights [kTiles, kStepTiles, 512], x [kStepTiles, kRows, 128] as StartRows swizzles it,
// scales [kTiles, kGroups, 32] and zeros [kTiles, kGroups, 16] of the step's groups.
template <typename S>
struct BulkStage {
  static constexpr int kGroups = 2 * S::kStepTiles;  // at most
  static constexpr int kXBytes = S::kRows * kRowBytes;
  static constexpr int kXAt = S::kTiles * S::kStepTiles * kTileBytes;
  static constexpr int kScalesAt = kXAt + S::kStepTiles * kXBytes;
  static constexpr int kZerosAt = kScalesAt + S::kTiles * kGroups * kScaleBytes;
  static constexpr int kCopiedBytes = kZerosAt + S::kTiles * kGroups * kZeroBytes;
  static constexpr int kBytes = (kCopiedBytes + 1023) / 1024 * 1024;

  __device__ static constexpr int GroupSlot(int tile, int /* half */, int group) {
    return tile * kGroups + group;
  }
};

// The ring, and for each stage whether it is full and whether it can be filled again.
template <typename S>
struct Ring {
  uint32_t stages;
  uint64_t* full;   // [kStages]
  uint64_t* empty;  // [kStages]

  __device__ __forceinline__ uint32_t At(int stage) const {
    return stages + stage * BulkStage<S>::kBytes;
  }
};

// A stage and how often the ring has gone round, modulo 2.
template <typename S>
struct RingCursor {
  int stage = 0;
  int parity = 0;

  __device__ __forceinline__ void Advance() {
    if (++stage == S::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Barriers are initialised for the copies that will arrive at them.
__device__ __forceinline__ void FenceBarriersForCopies() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// One arrival, of the phase's bytes are still to come.
__device__ __forceinline__ void ExpectBytes(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "{\n"
      ".reg .b64 state;\n"
      "mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1;\n"
      "}" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}

// The map's box from (input, row) on; what is past its ends becomes zeros.
__device__ __forceinline__ void StartBoxCopy(uint32_t to, const CUtensorMap& map, int input,
                                             int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(to),
      "l"(&map), "r"(input), "r"(row), "r"(SharedAddress(barrier))
      : "memory");
}

// What is copied, as the hardware knows matrices: boxes of them become parts of a stage.
struct Matrices {
  CUtensorMap tiles;   // words [output tiles, input tiles * 128]
  CUtensorMap scales;  // [output tiles, groups * 16]
  CUtensorMap zeros;   // the same; not looked at if there are none
  CUtensorMap x;       // [rows, inputs]
};

// Starts the copies of a unit's weights, with their scales and zero points, and says how many bytes
// the stage will have with its rows. Of groups it takes as many as a step can have.
template <typename S>
__device__ __forceinline__ void StartBulkWeights(const Matrices& m, bool has_zeros,
                                                 const Plan& plan, const Cursor& at,
                                                 const Ring<S>& ring, int stage) {
  using Stage = BulkStage<S>;
  uint64_t* full = ring.full + stage;
  const uint32_t to = ring.At(stage);
  const int tile = at.output_block * S::kTiles;
  const int input = at.step * S::kStepTiles;
  const int group = plan.group_of(2 * input);
  ExpectBytes(full, has_zeros ? Stage::kCopiedBytes : Stage::kZerosAt);
  StartBoxCopy(to, m.tiles, input * kInt4TileWords, tile, full);
  StartBoxCopy(to + Stage::kScalesAt, m.scales, group * kInt4TileOutputs, tile, full);
  if (has_zeros) {
    StartBoxCopy(to + Stage::kZerosAt, m.zeros, group * kInt4TileOutputs, tile, full);
  }
}

// The same of its rows of x.
template <typename S>
__device__ __forceinline__ void StartBulkRows(const Matrices& m, const Cursor& at,
                                              const Ring<S>& ring, int stage) {
#pragma unroll
  for (int i = 0; i < S::kStepTiles; ++i) {
    StartBoxCopy(ring.At(stage) + BulkStage<S>::kXAt + i * BulkStage<S>::kXBytes, m.x,
                 (at.step * S::kStepTiles + i) * kInt4TileInputs, at.row_block * S::kRows,
                 ring.full + stage);
  }
}

// What a block's copying thread does: all its units, as far ahead as there are stages.
template <typename S>
__device__ __forceinline__ void CopyUnits(const Matrices& m, bool has_zeros, const Plan& plan,
                                          int begin, int end, const Ring<S>& ring) {
  const int units = end - begin;
  const int first = min(S::kStages, units);
  Cursor at(plan, begin);
  for (int i = 0; i < first; ++i) {
    StartBulkWeights<S>(m, has_zeros, plan, at, ring, i);
    at.Advance(plan);
  }
  WaitForPrevious();
  Cursor rows(plan, begin);
  for (int i = 0; i < first; ++i) {
    StartBulkRows<S>(m, rows, ring, i);
    rows.Advance(plan);
  }
  RingCursor<S> to;
  for (int i = first; i < units; ++i) {
    WaitBarrier(ring.empty + to.stage, to.parity);
    StartBulkWeights<S>(m, has_zeros, plan, at, ring, to.stage);
    StartBulkRows<S>(m, at, ring, to.stage);
    at.Advance(plan);
    to.Advance();
  }
}

// What its other warps do.
template <typename T, typename S>
__device__ __forceinline__ void SumUnits(const Int4MatmulArguments& a, const Plan& plan,
                                         const Workspace& workspace, int begin, int end,
                                         const Ring<S>& ring) {
  const auto release = [&](int stage) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      ArriveAtBarrier(ring.empty + stage);
    }
  };
  WarpgroupSums<T, S, BulkStage<S>> sums;
  Arrivals arrivals;
  Cursor at(plan, begin);
  RingCursor<S> from;
  int unit = begin;
  while (unit < end) {
    const int tile_end = unit + plan.steps - at.step;
    const int piece_end = min(tile_end, end);
    const bool whole = at.step == 0 && piece_end == tile_end;
    int before = -1;
    sums.Clear();
    for (int step = at.step; unit < piece_end; ++unit, ++step) {
      WaitBarrier(ring.full + from.stage, from.parity);
      sums.Add(plan, a.weight.zeros != nullptr, ring.At(from.stage), step);
      if (before >= 0) {
        release(before);
      }
      before = from.stage;
      from.Advance();
    }
    sums.Finish();
    release(before);
    FinishTile<T, S>(a, plan, workspace, at, begin, whole, nullptr, sums, arrivals);
    at.step = plan.steps - 1;
    at.Advance(plan);
  }
  CombineAll<T, S>(a, plan, workspace, begin, end, arrivals);
}

template <typename T, typename S>
__global__ void __launch_bounds__(S::kThreads + 32, S::kMinBlocks)
    BulkKernel(const __grid_constant__ Int4MatmulArguments a, const __grid_constant__ Plan plan,
               const __grid_constant__ Workspace workspace, const __grid_constant__ Matrices m) {
  extern __shared__ __align__(1024) char shared[];
  __shared__ uint64_t full[S::kStages];
  __shared__ uint64_t empty[S::kStages];
  const Ring<S> ring = {SharedAddress(shared), full, empty};
  const int begin = plan.FirstUnit(blockIdx.x);
  const int end = plan.FirstUnit(blockIdx.x + 1);
  AllowNext();
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      InitBarrier(full + i, 1);
      InitBarrier(empty + i, S::kWarps);
    }
    FenceBarriersForCopies();
  }
  __syncthreads();
  if (threadIdx.x >= S::kThreads) {
    if (threadIdx.x == S::kThreads) {
      CopyUnits<S>(m, a.weight.zeros != nullptr, plan, begin, end, ring);
    }
  } else {
    WaitForPrevious();
    SumUnits<T, S>(a, plan, workspace, begin, end, ring);
  }
}

using EncodeMap = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                               const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                               const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                               CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's cuTensorMapEncodeTiled, or null. Programs are not linked with the driver.
inline EncodeMap FindEncodeMap() {
  constexpr unsigned kSince = 12000;
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             kSince, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess
             ? reinterpret_cast<EncodeMap>(function)
             : nullptr;
}

struct Matrix {
  CUtensorMapDataType type;
  int size;          // of an element, bytes
  const void* data;  // 16-byte aligned
  int rows;
  int columns;  // a multiple of 16 bytes
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_NONE;
};

inline cudaError_t MapMatrix(const Matrix& matrix, int box_rows, int box_columns,
                             CUtensorMap* map) {
  static const EncodeMap encode = FindEncodeMap();
  if (encode == nullptr) {
    return cudaErrorNotSupported;
  }
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(matrix.columns),
                              static_cast<cuuint64_t>(matrix.rows)};
  const cuuint64_t row_bytes[] = {sizes[0] * matrix.size};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_columns),
                            static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const CUresult result =
      encode(map, matrix.type, /*dimensions=*/2, const_cast<void*>(matrix.data), sizes, row_bytes,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, matrix.swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename S>
cudaError_t MapMatrices(const Int4MatmulArguments& a, const Plan& plan, Matrices* m) {
  using Stage = BulkStage<S>;
  const Int4Weight& w = a.weight;
  cudaError_t error = MapMatrix({CU_TENSOR_MAP_DATA_TYPE_UINT32, 4, w.tiles, plan.output_tiles,
                                 plan.input_tiles * kInt4TileWords},
                                S::kTiles, S::kStepTiles * kInt4TileWords, &m->tiles);
  if (error == cudaSuccess) {
    error = MapMatrix({CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, w.scales, plan.output_tiles,
                       plan.groups * kInt4TileOutputs},
                      S::kTiles, Stage::kGroups * kInt4TileOutputs, &m->scales);
  }
  if (error == cudaSuccess && w.zeros != nullptr) {
    error = MapMatrix({CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, w.zeros, plan.output_tiles,
                       plan.groups * kInt4TileOutputs},
                      S::kTiles, Stage::kGroups * kInt4TileOutputs, &m->zeros);
  }
  if (error == cudaSuccess) {
    error = MapMatrix(
        {CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, a.x, a.rows, w.inputs, CU_TENSOR_MAP_SWIZZLE_128B},
        S::kRows, kInt4TileInputs, &m->x);
  }
  return error;
}

// a.x is in the order of the weight already.
template <typename T, typename S>
cudaError_t LaunchBulkKernel(const Int4MatmulArguments& a, int multiprocessors,
                             cudaStream_t stream) {
  constexpr int kThreads = S::kThreads + 32;
  constexpr int kSharedBytes = S::kStages * BulkStage<S>::kBytes;
  const auto kernel = BulkKernel<T, S>;
  Plan plan;
  Matrices m;
  cudaError_t error = Prepare<S>(reinterpret_cast<const void*>(kernel), kThreads, kSharedBytes, a,
                                 multiprocessors, &plan);
  if (error == cudaSuccess) {
    error = MapMatrices<S>(a, plan, &m);
  }
  return error != cudaSuccess ? error
                              : LaunchOverlapped(kernel, plan.blocks, kThreads, kSharedBytes,
                                                 stream, a, plan, WorkspaceOf(a), m);
}

}  // namespace ferrite::int4_matmul

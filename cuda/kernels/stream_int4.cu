#include "cuda/kernels/stream_int4.h"

#include <algorithm>

#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/stream_int4_parts.cuh"
#include "cuda/kernels/stream_matmul_activations.cuh"

// In the manner of stream_matmul.cu: one block a multiprocessor streams its share of W through a
// ring in shared memory. A unit of work is a row of tiles, 16 outputs (for kSiluMul the gates' and
// the ups' row) by one slice of the inputs; the warps of a team share out its inputs.
namespace ferrite {
namespace stream_int4 {
namespace {

using stream_matmul::ArriveAtBarrier;
using stream_matmul::InitBarrier;
using stream_matmul::RoundUp;
using stream_matmul::WaitBarrier;
using Epilogue = StreamMatmulArguments::Epilogue;

// As stream_matmul::ReadActivations, with input k of the slice from order[k].
template <typename T>
__device__ void ReadOrdered(const StreamMatmulArguments& a, const stream_matmul::Plan& plan,
                            const int32_t* order, int begin, T* x, float* scratch) {
  WaitForPrevious();
  if (a.residual != nullptr) {
    stream_matmul::ComputeScales(a, scratch);
  }
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

// Waits for the kernel ahead and puts this block's slice of x into shared memory, a team some of
// the rows; `scratch` is the team's own.
template <typename T>
__device__ void ReadRows(const StreamMatmulArguments& all, const stream_matmul::Plan& plan,
                         const int32_t* order, int begin, T* x, float* scratch) {
  StreamMatmulArguments a = all;
  // A single row's norm both teams work out, and write the same: its barriers are of the block.
  if (a.rows > 1 || a.residual == nullptr) {
    const int low = (a.rows + 1) / 2;
    const int first = threadIdx.y == 0 ? 0 : low;
    a.rows = threadIdx.y == 0 ? low : a.rows - low;
    a.x = a.x == nullptr ? nullptr : static_cast<const T*>(a.x) + int64_t{first} * a.inputs;
    a.residual = a.residual == nullptr ? nullptr : a.residual + int64_t{first} * a.inputs;
    x += first * plan.x_stride;
  }
  if (order != nullptr) {
    ReadOrdered(a, plan, order, begin, x, scratch);
  } else {
    stream_matmul::ReadActivations(a, plan, begin, x, scratch);
  }
}

// A lane has four of a tile's 16 outputs x 8 rows: outputs lane / 4, and lane / 4 + 8 from i = 2
// on; rows lane % 4 * 2 and the next.
__device__ __forceinline__ int OutputOf(int unit, int i) {
  return unit * kInt4TileOutputs + static_cast<int>(threadIdx.x % 32 / 4) + i / 2 * 8;
}
__device__ __forceinline__ int RowOf(int i) {
  return static_cast<int>(threadIdx.x % 4) * 2 + i % 2;
}

// What a unit's sums are added to: bias, and for kAdd what is there already.
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
// outputs or partials.
template <typename T, int kTiles>
__device__ void FinishUnit(const StreamMatmulArguments& a, const stream_matmul::Plan& plan,
                           int unit, int slice, const float4* sums_of_warps, uint64_t* filled,
                           int parity) {
  float sums[kTiles][4] = {};
  if (plan.slices == 1) {
    ReadStart<kTiles>(a, unit, sums);
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
  for (int unit = group + warp * groups; unit < plan.units; unit += kTeams * kWarps * groups) {
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

template <typename T, int kTiles, int kRing>
__global__ void __launch_bounds__(kTeams* kThreads, 1)
    Kernel(const __grid_constant__ StreamMatmulArguments a,
           const __grid_constant__ Int4Weight weight, const __grid_constant__ Plan full_plan) {
  constexpr int kStep = StepInputs(kTiles);
  constexpr int kUnitSums = kWarps * kTiles * 32;
  using Values = Nibbles<T>;
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t all_filled[kTeams][kSumBuffers];   // all warps have put their sums of a unit
  __shared__ uint64_t all_emptied[kTeams][kSumBuffers];  // and they have been added up
  const stream_matmul::Plan& plan = full_plan.shape;
  const int team = threadIdx.y;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int slice = blockIdx.x % plan.slices;
  const int group = blockIdx.x / plan.slices;
  const int groups = plan.blocks / plan.slices;
  const int scale_bytes = kRing * kWarps * ScaleBytes(full_plan.chunk);
  char* scales = shared + kTeams * kRing * kStageBytes;
  auto* all_sums = reinterpret_cast<float4*>(scales + kTeams * scale_bytes);
  T* x = reinterpret_cast<T*>(all_sums + kTeams * kSumBuffers * kUnitSums);
  float4* sums_of_warps = all_sums + team * kSumBuffers * kUnitSums;
  uint64_t* filled = all_filled[team];
  uint64_t* emptied = all_emptied[team];

  AllowNext();
  const int first_unit = group + team * groups;
  WeightStream<kTiles> weights(weight, full_plan, shared + team * kRing * kStageBytes,
                               scales + team * scale_bytes, slice, first_unit);
#pragma unroll 1
  for (int stage = 0; stage < kRing; ++stage) {
    weights.Start(stage);
  }
  if (threadIdx.x < kSumBuffers) {
    InitBarrier(&filled[threadIdx.x], kThreads);
    InitBarrier(&emptied[threadIdx.x], 32);
  }
  ReadRows(a, plan, weight.order, slice * plan.slice_inputs, x,
           reinterpret_cast<float*>(sums_of_warps));
  __syncthreads();

  // Rows past the last read that one: what comes of them is not looked at.
  const uint32_t x_row =
      stream_matmul::SharedAddress(x + min(lane % 8, a.rows - 1) * plan.x_stride + lane / 8 * 8);
  const bool has_zeros = weight.zeros != nullptr;
  const auto finish = [&](int i) {
    const int buffer = i % kSumBuffers;
    FinishUnit<T, kTiles>(a, plan, first_unit + i * kTeams * groups, slice,
                          sums_of_warps + buffer * kUnitSums, &filled[buffer], i / kSumBuffers % 2);
    ArriveAtBarrier(&emptied[buffer]);
  };
  int stage = 0;
  int i = 0;
  for (int unit = first_unit; unit < plan.units; unit += kTeams * groups, ++i) {
    float sums[kTiles][4] = {};
    for (int step = warp * kStep; step < plan.slice_inputs; step += kWarps * kStep) {
      // Where the second half is past the slice, its weights and scales are zero: any x will do.
      const int second = step + kMaxChunk < plan.slice_inputs ? step + kMaxChunk : step;
      const uint32_t x_at[2] = {static_cast<uint32_t>(x_row + step * sizeof(T)),
                                static_cast<uint32_t>(x_row + second * sizeof(T))};
      stream_matmul::WaitCopies<kRing - 1>();
      __syncwarp();  // other lanes have copied the scales
      if (full_plan.chunk == 128) {
        MultiplyStep<T, kTiles, 128>(weights, stage, x_at, has_zeros, sums);
      } else if (full_plan.chunk == 64) {
        MultiplyStep<T, kTiles, 64>(weights, stage, x_at, has_zeros, sums);
      } else {
        MultiplyStep<T, kTiles, 32>(weights, stage, x_at, has_zeros, sums);
      }
      stage = stage + 1 == kRing ? 0 : stage + 1;
    }
    const int buffer = i % kSumBuffers;
    if (i >= kSumBuffers) {
      WaitBarrier(&emptied[buffer], (i / kSumBuffers - 1) % 2);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      sums_of_warps[buffer * kUnitSums + (warp * kTiles + tile) * 32 + lane] =
          make_float4(sums[tile][0] * Values::kScale, sums[tile][1] * Values::kScale,
                      sums[tile][2] * Values::kHighScale, sums[tile][3] * Values::kHighScale);
    }
    ArriveAtBarrier(&filled[buffer]);
    // A unit late, when the other warps have most likely put theirs.
    if (i > 0 && (i - 1) % kWarps == warp) {
      finish(i - 1);
    }
  }
  if (i > 0 && (i - 1) % kWarps == warp) {
    finish(i - 1);
  }
  if (plan.slices > 1) {
    CombineSlices<T, kTiles>(a, plan, group);
  }
}

struct DeviceLimits {
  int multiprocessors = 0;
  int block_shared_bytes = 0;
};

cudaError_t GetDeviceLimits(DeviceLimits* limits) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error =
        cudaDeviceGetAttribute(&limits->multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&limits->block_shared_bytes,
                                   cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  return error;
}

// As for stream_matmul: fewest slices for which x fits beside a ring of the least depth, then the
// deeper ring.
cudaError_t MakePlan(const StreamMatmulArguments& a, const Int4Weight& weight, Plan* full_plan) {
  DeviceLimits limits;
  if (const cudaError_t error = GetDeviceLimits(&limits); error != cudaSuccess) {
    return error;
  }
  const int group_size = weight.group_size;
  full_plan->chunk = group_size % 128 == 0 ? 128 : group_size % 64 == 0 ? 64 : 32;
  full_plan->groups = a.inputs / group_size;
  full_plan->group_factor =
      static_cast<uint32_t>(((uint64_t{1} << 32) + group_size - 1) / group_size);

  stream_matmul::Plan* plan = &full_plan->shape;
  const int tiles = a.epilogue == Epilogue::kSiluMul ? 2 : 1;
  plan->units = a.outputs / tiles / kInt4TileOutputs;
  plan->shared_bytes = limits.block_shared_bytes - stream_matmul::kStaticSharedBytes;
  const size_t stage_bytes = size_t{kTeams} * (kStageBytes + kWarps * ScaleBytes(full_plan->chunk));
  const size_t team_sums_bytes = size_t{kSumBuffers} * kThreads * tiles * sizeof(float4);
  const size_t sums_bytes = kTeams * team_sums_bytes;
  const size_t segments = RoundUp(a.inputs, stream_matmul::kSegment) / stream_matmul::kSegment;
  if (a.residual != nullptr && (segments + 1) * a.rows * sizeof(float) > team_sums_bytes) {
    return cudaErrorInvalidValue;
  }
  for (int slices = 1; slices <= limits.multiprocessors; ++slices) {
    plan->slice_inputs = RoundUp((a.inputs + slices - 1) / slices,
                                 std::max(kMaxChunk, stream_matmul::kMaxStepInputs));
    plan->slices = (a.inputs + plan->slice_inputs - 1) / plan->slice_inputs;
    plan->x_stride = plan->slice_inputs + 8;  // so that eight rows' matrices meet all banks once
    const size_t fixed = sums_bytes + size_t{2} * a.rows * plan->x_stride;
    const int groups = limits.multiprocessors / plan->slices;
    // Not if many multiprocessors were left over for want of a whole group.
    if (fixed + kMinRing * stage_bytes <= plan->shared_bytes &&
        groups * plan->slices * 16 >= limits.multiprocessors * 15) {
      const size_t fit = (plan->shared_bytes - fixed) / stage_bytes;
      plan->stages = static_cast<int>(std::min<size_t>(fit, kMaxRing));
      plan->blocks = std::min(groups, plan->units) * plan->slices;
      return cudaSuccess;
    }
  }
  return cudaErrorInvalidValue;
}

// So that Plan::group_factor is exact.
constexpr int32_t kMaxInputs = 65536;

bool IsValid(const StreamMatmulArguments& a, const Int4Weight& weight) {
  const int tiles = a.epilogue == Epilogue::kSiluMul ? 2 : 1;
  return a.rows >= 1 && a.rows <= kMaxStreamInt4Rows && weight.inputs >= kInt4TileInputs &&
         weight.inputs % kInt4TileInputs == 0 && weight.inputs <= kMaxInputs &&
         weight.outputs >= tiles * kInt4TileOutputs &&
         weight.outputs % (tiles * kInt4TileOutputs) == 0 && weight.group_size >= kMatrixInputs &&
         weight.group_size % kMatrixInputs == 0 && weight.inputs % weight.group_size == 0;
}

// `arguments` with the weight's sizes, and the plan for them.
cudaError_t Prepare(const StreamMatmulArguments& arguments, const Int4Weight& weight,
                    StreamMatmulArguments* a, Plan* plan) {
  if (!IsValid(arguments, weight)) {
    return cudaErrorInvalidValue;
  }
  *a = arguments;
  a->inputs = weight.inputs;
  a->outputs = weight.outputs;
  return MakePlan(*a, weight, plan);
}

template <typename T, int kTiles>
cudaError_t Launch(const StreamMatmulArguments& a, const Int4Weight& weight, const Plan& plan,
                   cudaStream_t stream) {
  static_assert(kMinRing == 2 && kMaxRing == 5);
  auto* kernel = plan.shape.stages == 5   ? Kernel<T, kTiles, 5>
                 : plan.shape.stages == 4 ? Kernel<T, kTiles, 4>
                 : plan.shape.stages == 3 ? Kernel<T, kTiles, 3>
                                          : Kernel<T, kTiles, 2>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(plan.shape.shared_bytes));
  if (error != cudaSuccess) {
    return error;
  }
  return LaunchOverlapped(kernel, static_cast<unsigned>(plan.shape.blocks), dim3(kThreads, kTeams),
                          plan.shape.shared_bytes, stream, a, weight, plan);
}

template <typename T>
cudaError_t Launch(const StreamMatmulArguments& a, const Int4Weight& weight, const Plan& plan,
                   cudaStream_t stream) {
  return a.epilogue == Epilogue::kSiluMul ? Launch<T, 2>(a, weight, plan, stream)
                                          : Launch<T, 1>(a, weight, plan, stream);
}

}  // namespace
}  // namespace stream_int4

cudaError_t SizeStreamInt4Scratch(const StreamMatmulArguments& arguments, const Int4Weight& weight,
                                  StreamMatmulScratch* scratch) {
  *scratch = {};
  StreamMatmulArguments a;
  stream_int4::Plan plan;
  const cudaError_t error = stream_int4::Prepare(arguments, weight, &a, &plan);
  if (error == cudaSuccess && plan.shape.slices > 1) {
    const size_t tiles = a.outputs / kInt4TileOutputs;  // units of any epilogue have them all
    scratch->partials = tiles * plan.shape.slices * 32 * 4;
    scratch->counters = tiles;
  }
  return error;
}

cudaError_t StreamInt4(const StreamMatmulArguments& arguments, const Int4Weight& weight,
                       cudaStream_t stream) {
  StreamMatmulArguments a;
  stream_int4::Plan plan;
  if (const cudaError_t error = stream_int4::Prepare(arguments, weight, &a, &plan);
      error != cudaSuccess) {
    return error;
  }
  if (plan.shape.slices > 1 && (a.partials == nullptr || a.counters == nullptr)) {
    return cudaErrorInvalidValue;
  }
  return a.type == GpuType::kFp16 ? stream_int4::Launch<__half>(a, weight, plan, stream)
                                  : stream_int4::Launch<__nv_bfloat16>(a, weight, plan, stream);
}

}  // namespace ferrite

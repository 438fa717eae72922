#include <algorithm>

#include "cuda/kernels/device_limits.h"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/stream_matmul.h"
#include "cuda/kernels/stream_matmul_activations.cuh"
#include "cuda/kernels/stream_matmul_parts.cuh"

// One block a multiprocessor stays for the whole product and streams its share of W through a deep
// ring of asynchronous copies, which it starts to fill before it waits for the kernel ahead. A unit
// of work is eight outputs (for kSiluMul eight gates and their eight ups) by one slice of the
// inputs; the warps of the block share out its inputs, and one of them adds up. Where x is too
// large for a block, each block keeps to one slice, and the last block of those that share the same
// outputs adds the slices in their order.
namespace ferrite {
namespace stream_matmul {
namespace {

using Epilogue = StreamMatmulArguments::Epilogue;

// What a lane holds of a tile's 16 x 8 sums: rows lane / 4 and, where kWide, lane / 4 + 8; outputs
// lane % 4 * 2 and the next.
template <bool kWide>
using LaneSums = std::conditional_t<kWide, float4, float2>;

__device__ __forceinline__ void Narrowed(const float (&sums)[4], float4& to) {
  to = make_float4(sums[0], sums[1], sums[2], sums[3]);
}
__device__ __forceinline__ void Narrowed(const float (&sums)[4], float2& to) {
  to = make_float2(sums[0], sums[1]);
}
__device__ __forceinline__ void AddTo(float (&sums)[4], const float4& value) {
  sums[0] += value.x;
  sums[1] += value.y;
  sums[2] += value.z;
  sums[3] += value.w;
}
__device__ __forceinline__ void AddTo(float (&sums)[4], const float2& value) {
  sums[0] += value.x;
  sums[1] += value.y;
}

// Bias, activation and the write of one element. `up` is the second half's sum for kSiluMul, `old`
// what kAdd adds to.
template <typename T>
__device__ void WriteOutput(const StreamMatmulArguments& a, int width, int row, int output,
                            float sum, float up, float old) {
  const int64_t at = int64_t{row} * width + output;
  if (a.bias != nullptr) {
    sum += a.bias[output];
  }
  switch (a.epilogue) {
    case Epilogue::kStore:
      static_cast<T*>(a.y)[at] = FromFloat<T>(sum);
      break;
    case Epilogue::kFp32:
      static_cast<float*>(a.y)[at] = sum;
      break;
    case Epilogue::kAdd:
      static_cast<float*>(a.y)[at] = old + sum;
      break;
    case Epilogue::kSiluMul:
      if (a.bias != nullptr) {
        up += a.bias[width + output];
      }
      static_cast<T*>(a.y)[at] = FromFloat<T>(sum / (1.0f + __expf(-sum)) * up);
      break;
  }
}

// What kAdd adds a unit's sums to, read long before they are there; zeros for other epilogues.
template <int kTiles, bool kWide>
__device__ __forceinline__ void ReadOld(const StreamMatmulArguments& a, int unit,
                                        float (&old)[kWide ? 4 : 2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < (kWide ? 4 : 2); ++i) {
    const int row = lane / 4 + i / 2 * 8;
    const int output = unit * kTileOutputs + lane % 4 * 2 + i % 2;
    old[i] = 0;
    if (kTiles == 1 && a.epilogue == Epilogue::kAdd && row < a.rows && output < a.outputs) {
      old[i] = __ldcg(static_cast<const float*>(a.y) + int64_t{row} * a.outputs + output);
    }
  }
}

template <typename T, int kTiles, bool kWide>
__device__ void WriteUnit(const StreamMatmulArguments& a, int unit, const float (&sums)[kTiles][4],
                          const float (&old)[kWide ? 4 : 2]) {
  const int lane = threadIdx.x % 32;
  const int width = a.outputs / kTiles;
#pragma unroll
  for (int i = 0; i < (kWide ? 4 : 2); ++i) {
    const int row = lane / 4 + i / 2 * 8;
    const int output = unit * kTileOutputs + lane % 4 * 2 + i % 2;
    if (row < a.rows && output < width) {
      WriteOutput<T>(a, width, row, output, sums[0][i], sums[kTiles - 1][i], old[i]);
    }
  }
}

// Where a lane's part of a slice of a unit lies: [units, slices, kTiles, 32 lanes].
template <int kTiles, bool kWide>
__device__ LaneSums<kWide>* Partials(const StreamMatmulArguments& a, const Plan& plan, int unit,
                                     int slice) {
  return reinterpret_cast<LaneSums<kWide>*>(a.partials) +
         (int64_t{unit} * plan.slices + slice) * kTiles * 32 + threadIdx.x % 32;
}

// One warp adds up what all of the block's have of a unit, and writes its outputs or partials.
template <typename T, int kTiles, bool kWide>
__device__ void FinishUnit(const StreamMatmulArguments& a, const Plan& plan, int unit, int slice,
                           const LaneSums<kWide>* sums_of_warps,
                           const float (&old)[kWide ? 4 : 2]) {
  const int lane = threadIdx.x % 32;
  float sums[kTiles][4] = {};
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      AddTo(sums[tile], sums_of_warps[(warp * kTiles + tile) * 32 + lane]);
    }
  }
  if (plan.slices == 1) {
    WriteUnit<T, kTiles, kWide>(a, unit, sums, old);
    return;
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    LaneSums<kWide> mine;
    Narrowed(sums[tile], mine);
    __stcg(Partials<kTiles, kWide>(a, plan, unit, slice) + tile * 32, mine);
  }
}

// The last block of a group to come here adds the slices of all of the group's units.
template <typename T, int kTiles, bool kWide>
__device__ void CombineSlices(const StreamMatmulArguments& a, const Plan& plan, int group) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(a.counters + group, 1) == plan.slices - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last) {
    return;
  }
  const int groups = plan.blocks / plan.slices;
  for (int unit = group + static_cast<int>(threadIdx.x / 32) * groups; unit < plan.units;
       unit += kWarps * groups) {
    float old[kWide ? 4 : 2];
    ReadOld<kTiles, kWide>(a, unit, old);
    float sums[kTiles][4] = {};
#pragma unroll 4
    for (int slice = 0; slice < plan.slices; ++slice) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        AddTo(sums[tile], __ldcg(Partials<kTiles, kWide>(a, plan, unit, slice) + tile * 32));
      }
    }
    WriteUnit<T, kTiles, kWide>(a, unit, sums, old);
  }
  if (threadIdx.x == 0) {
    a.counters[group] = 0;
  }
}

template <typename T, int kTiles, bool kWide, int kRing>
__global__ void __launch_bounds__(kThreads, 2)
    Kernel(const __grid_constant__ StreamMatmulArguments a, const __grid_constant__ Plan plan) {
  constexpr int kBuffers = SumBuffers(kTiles);
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t filled[kBuffers];   // all warps have put their sums of a unit
  __shared__ uint64_t emptied[kBuffers];  // and they have been added up
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int slice = blockIdx.x % plan.slices;
  const int group = blockIdx.x / plan.slices;
  const int groups = plan.blocks / plan.slices;
  auto* sums_of_warps = reinterpret_cast<LaneSums<kWide>*>(shared + kRing * kStageBytes);
  T* x = reinterpret_cast<T*>(sums_of_warps + kBuffers * kWarps * kTiles * 32);

  AllowNext();
  WeightStream<T, kTiles> weights(static_cast<const T*>(a.weight), plan, a.inputs,
                                  a.outputs / kTiles, SharedAddress(shared), slice, group);
#pragma unroll
  for (int stage = 0; stage < kRing; ++stage) {
    weights.Start(stage);
  }
  if (threadIdx.x < kBuffers) {
    InitBarrier(&filled[threadIdx.x], kThreads);
    InitBarrier(&emptied[threadIdx.x], 32);
  }
  ReadActivations(a, plan, slice * plan.slice_inputs, x, reinterpret_cast<float*>(sums_of_warps));
  __syncthreads();

  // Rows past the last read that one: what comes of them is not looked at.
  const int high = min(lane / 4 + 8, a.rows - 1);
  const uint32_t x_low =
      SharedAddress(x + min(lane / 4, a.rows - 1) * plan.x_stride + lane % 4 * 8);
  const uint32_t x_high = SharedAddress(x + high * plan.x_stride + lane % 4 * 8);
  float old[kWide ? 4 : 2] = {};
  const auto finish = [&](int i) {
    const int buffer = i % kBuffers;
    WaitBarrier(&filled[buffer], i / kBuffers % 2);
    FinishUnit<T, kTiles, kWide>(a, plan, group + i * groups, slice,
                                 sums_of_warps + buffer * kWarps * kTiles * 32, old);
    ArriveAtBarrier(&emptied[buffer]);
  };
  int stage = 0;
  int i = 0;
  for (int unit = group; unit < plan.units; unit += groups, ++i) {
    if (i % kWarps == warp && plan.slices == 1) {
      ReadOld<kTiles, kWide>(a, unit, old);
    }
    float sums[kTiles][2][4] = {};  // two chains, for the tensor cores' latency
    for (int step = warp * StepInputs(kTiles); step < plan.slice_inputs;
         step += kWarps * StepInputs(kTiles)) {
      WaitCopies<kRing - 1>();
#pragma unroll
      for (int piece = 0; piece < kLanePieces / kTiles; ++piece) {
        const uint32_t at = (step + piece * kPieceInputs) * sizeof(T);
        const uint4 low_x = LoadShared(x_low + at);
        const uint4 high_x = kWide ? LoadShared(x_high + at) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const uint4 w = weights.Load(stage, tile, piece);
          Multiply<T>(sums[tile][0], low_x.x, high_x.x, low_x.y, high_x.y, w.x, w.y);
          Multiply<T>(sums[tile][1], low_x.z, high_x.z, low_x.w, high_x.w, w.z, w.w);
        }
      }
      weights.Start(stage);
      stage = stage + 1 == kRing ? 0 : stage + 1;
    }
    const int buffer = i % kBuffers;
    if (i >= kBuffers) {
      WaitBarrier(&emptied[buffer], (i / kBuffers - 1) % 2);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[tile][0][j] += sums[tile][1][j];
      }
      Narrowed(sums[tile][0],
               sums_of_warps[((buffer * kWarps + warp) * kTiles + tile) * 32 + lane]);
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
    CombineSlices<T, kTiles, kWide>(a, plan, group);
  }
}

// Fewest slices for which x fits beside a ring of the least depth; then the deeper ring. A block
// takes all shared memory it can: two blocks of one kernel must not come to share a multiprocessor.
cudaError_t MakePlan(const StreamMatmulArguments& a, Plan* plan) {
  DeviceLimits limits;
  if (const cudaError_t error = GetDeviceLimits(&limits); error != cudaSuccess) {
    return error;
  }
  const int tiles = a.epilogue == Epilogue::kSiluMul ? 2 : 1;
  plan->units = (a.outputs / tiles + kTileOutputs - 1) / kTileOutputs;
  plan->shared_bytes = limits.block_shared_bytes - kStaticSharedBytes;
  const size_t sums_bytes =
      size_t{1} * SumBuffers(tiles) * kWarps * tiles * 32 * (a.rows > 8 ? 16 : 8);
  const size_t segments = (size_t{1} * a.inputs + kSegment - 1) / kSegment;
  if (a.residual != nullptr && (segments + 1) * a.rows * sizeof(float) > sums_bytes) {
    return cudaErrorInvalidValue;
  }
  for (int slices = 1; slices <= limits.multiprocessors; ++slices) {
    plan->slice_inputs = RoundUp((a.inputs + slices - 1) / slices, kMaxStepInputs);
    plan->slices = (a.inputs + plan->slice_inputs - 1) / plan->slice_inputs;
    plan->x_stride = plan->slice_inputs + 32;  // so that two rows' pieces meet all banks once
    const size_t fixed = sums_bytes + size_t{2} * a.rows * plan->x_stride;
    const int groups = limits.multiprocessors / plan->slices;
    // Not if many multiprocessors were left over for want of a whole group.
    if (fixed + kMinStages * kStageBytes <= plan->shared_bytes &&
        groups * plan->slices * 16 >= limits.multiprocessors * 15) {
      const size_t fit = (plan->shared_bytes - fixed) / kStageBytes;
      plan->stages = a.rows <= kMaxDeepRows && fit >= kDeepStages ? kDeepStages
                     : fit >= kStages                             ? kStages
                                                                  : kMinStages;
      plan->blocks = std::min(groups, plan->units) * plan->slices;
      return cudaSuccess;
    }
  }
  return cudaErrorInvalidValue;
}

bool IsValid(const StreamMatmulArguments& a) {
  const bool pairs = a.epilogue == Epilogue::kSiluMul;
  return a.rows >= 1 && a.rows <= kMaxStreamRows && a.inputs >= 8 && a.inputs % 8 == 0 &&
         a.outputs >= 1 && (!pairs || a.outputs % 2 == 0);
}

template <typename T, int kTiles, bool kWide>
cudaError_t Launch(const StreamMatmulArguments& a, const Plan& plan, cudaStream_t stream) {
  auto* kernel = plan.stages == kDeepStages ? Kernel<T, kTiles, kWide, kDeepStages>
                 : plan.stages == kStages   ? Kernel<T, kTiles, kWide, kStages>
                                            : Kernel<T, kTiles, kWide, kMinStages>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared_bytes));
  if (error != cudaSuccess) {
    return error;
  }
  return LaunchOverlapped(kernel, static_cast<unsigned>(plan.blocks), kThreads, plan.shared_bytes,
                          stream, a, plan);
}

template <typename T>
cudaError_t Launch(const StreamMatmulArguments& a, const Plan& plan, cudaStream_t stream) {
  if (a.epilogue == Epilogue::kSiluMul) {
    return a.rows > 8 ? Launch<T, 2, true>(a, plan, stream) : Launch<T, 2, false>(a, plan, stream);
  }
  return a.rows > 8 ? Launch<T, 1, true>(a, plan, stream) : Launch<T, 1, false>(a, plan, stream);
}

}  // namespace
}  // namespace stream_matmul

cudaError_t SizeStreamMatmulScratch(const StreamMatmulArguments& arguments,
                                    StreamMatmulScratch* scratch) {
  *scratch = {};
  stream_matmul::Plan plan;
  if (!stream_matmul::IsValid(arguments)) {
    return cudaErrorInvalidValue;
  }
  const cudaError_t error = stream_matmul::MakePlan(arguments, &plan);
  if (error == cudaSuccess && plan.slices > 1) {
    const size_t tiles = arguments.outputs / stream_matmul::kTileOutputs + 2;  // of any epilogue
    scratch->partials = tiles * plan.slices * 32 * (arguments.rows > 8 ? 4 : 2);
    scratch->counters = tiles;
  }
  return error;
}

cudaError_t StreamMatmul(const StreamMatmulArguments& arguments, cudaStream_t stream) {
  stream_matmul::Plan plan;
  if (!stream_matmul::IsValid(arguments)) {
    return cudaErrorInvalidValue;
  }
  if (const cudaError_t error = stream_matmul::MakePlan(arguments, &plan); error != cudaSuccess) {
    return error;
  }
  if (plan.slices > 1 && (arguments.partials == nullptr || arguments.counters == nullptr)) {
    return cudaErrorInvalidValue;
  }
  return arguments.type == GpuType::kFp16
             ? stream_matmul::Launch<__half>(arguments, plan, stream)
             : stream_matmul::Launch<__nv_bfloat16>(arguments, plan, stream);
}

}  // namespace ferrite

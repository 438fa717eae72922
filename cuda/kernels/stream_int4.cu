#include "cuda/kernels/stream_int4.h"

#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/stream_int4_activations.cuh"
#include "cuda/kernels/stream_int4_bytes.cuh"
#include "cuda/kernels/stream_int4_parts.cuh"
#include "cuda/kernels/stream_int4_plan.cuh"
#include "cuda/kernels/stream_int4_units.cuh"

// In the manner of stream_matmul.cu: one block a multiprocessor streams its share of W through a
// ring in shared memory. A unit of work is a row of tiles, 16 outputs (for kSiluMul the gates' and
// the ups' row) by one slice of the inputs; the warps of a team share out its inputs.
namespace ferrite {
namespace stream_int4 {
namespace {

using stream_matmul::ArriveAtBarrier;
using stream_matmul::InitBarrier;

template <typename T, int kTiles, int kChunk, int kStages, bool kByDigits>
__global__ void __launch_bounds__(kMaxTeams* kThreads, 1)
    Kernel(const __grid_constant__ StreamMatmulArguments a,
           const __grid_constant__ Int4Weight weight, const __grid_constant__ Plan full_plan) {
  constexpr int kStep = StepInputs(kTiles);
  constexpr int kUnitSums = kWarps * kTiles * 32;
  using Values = Nibbles<T>;
  extern __shared__ __align__(128) char shared[];
  // All warps have put their sums of a unit; and these have been added up.
  __shared__ uint64_t all_filled[kMaxTeams][kSumBuffers];
  __shared__ uint64_t all_emptied[kMaxTeams][kSumBuffers];
  const stream_matmul::Plan& plan = full_plan.shape;
  const int teams = blockDim.y;
  const int team = threadIdx.y;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int group = plan.slices == 1 ? blockIdx.x : blockIdx.x / plan.slices;
  const int slice = blockIdx.x - group * plan.slices;
  const int groups = full_plan.block_groups;
  const int scale_bytes = kStages * kWarps * ScaleBytes(kChunk);
  char* scales = shared + teams * kStages * kStageBytes;
  auto* all_sums = reinterpret_cast<float4*>(scales + teams * scale_bytes);
  auto* x_bytes = reinterpret_cast<char*>(all_sums + teams * kSumBuffers * kUnitSums);
  float4* sums_of_warps = all_sums + team * kSumBuffers * kUnitSums;
  uint64_t* filled = all_filled[team];
  uint64_t* emptied = all_emptied[team];

  AllowNext();
  const int first_unit = group + team * groups;
  WeightStream<kTiles> weights(weight, full_plan, shared + team * kStages * kStageBytes,
                               scales + team * scale_bytes, slice, first_unit);
  if (weight.zeros == nullptr) {
    weights.FillZeros(full_plan);
  }
  if (threadIdx.x < kSumBuffers) {
    InitBarrier(&filled[threadIdx.x], kThreads);
    InitBarrier(&emptied[threadIdx.x], 32);
  }
  const int begin = slice * plan.slice_inputs;
  const int inputs = min(plan.slice_inputs, a.inputs - begin);
  // The activations are not to queue behind all of the ring.
  const auto start = [&](int first, int end) {
#pragma unroll 1
    for (int stage = first; stage < end; ++stage) {
      weights.Start(stage);
    }
  };
  const auto before = [&] { start(0, kEarlyStages); };
  const auto meanwhile = [&] { start(kEarlyStages, kStages); };
  const Activations x = [&] {
    auto* scratch = reinterpret_cast<float*>(all_sums);
    if constexpr (kByDigits) {
      return DigitsToShared<T>(a, plan, begin, x_bytes, scratch, before, meanwhile);
    } else {
      return RowsToShared<T, kChunk>(a, full_plan, weight.order, begin, x_bytes, scratch,
                                     kSumBuffers * kUnitSums * 4, before, meanwhile);
    }
  }();

  float sums_start[kTiles][4] = {};  // of the unit that this warp finishes next
  const auto finish = [&](int i) {
    const int buffer = i % kSumBuffers;
    FinishUnit<T, kTiles>(a, plan, first_unit + i * teams * groups, slice,
                          sums_of_warps + buffer * kUnitSums, &filled[buffer], i / kSumBuffers % 2,
                          sums_start);
    ArriveAtBarrier(&emptied[buffer]);
  };
  int stage = 0;
  int i = 0;
  for (int unit = first_unit; unit < plan.units; unit += teams * groups, ++i) {
    if (i % kWarps == warp && plan.slices == 1) {
      ReadStart<kTiles>(a, unit, sums_start);
    }
    float sums[kTiles][4] = {};
    for (int step = warp * kStep; step < inputs; step += kWarps * kStep) {
      stream_matmul::WaitCopies<kStages - 1>();
      __syncwarp();  // other lanes have copied the scales
      if constexpr (kByDigits) {
        MultiplyDigits<kTiles, kChunk>(weights, stage, x.row + step, sums);
      } else {
        const uint32_t x_at = x.row + step * static_cast<int>(sizeof(T));
        const float* sums_at = x.sums + step / kChunk * full_plan.sums_stride;
        MultiplyStep<T, kTiles, kChunk>(weights, stage, x_at, sums_at, full_plan.sums_stride, sums);
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    const int buffer = i % kSumBuffers;
    if (i >= kSumBuffers) {
      WaitBarrier(&emptied[buffer], (i / kSumBuffers - 1) % 2);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float4& to = sums_of_warps[buffer * kUnitSums + (warp * kTiles + tile) * 32 + lane];
      if constexpr (kByDigits) {
        to = JoinDigits(sums[tile], x.unit);
      } else {
        to = make_float4(sums[tile][0] * Values::kScale, sums[tile][1] * Values::kScale,
                         sums[tile][2] * (Values::kScale / Values::kHighFactor),
                         sums[tile][3] * (Values::kScale / Values::kHighFactor));
      }
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

template <typename T, int kTiles, int kChunk, bool kByDigits = false>
cudaError_t Launch(const StreamMatmulArguments& a, const Int4Weight& weight, const Plan& plan,
                   cudaStream_t stream) {
  auto* kernel = plan.shape.stages == kRing ? Kernel<T, kTiles, kChunk, kRing, kByDigits>
                                            : Kernel<T, kTiles, kChunk, kMinRing, kByDigits>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(plan.shape.shared_bytes));
  if (error != cudaSuccess) {
    return error;
  }
  return LaunchOverlapped(kernel, static_cast<unsigned>(plan.shape.blocks),
                          dim3(kThreads, plan.teams), plan.shape.shared_bytes, stream, a, weight,
                          plan);
}

template <typename T, int kTiles>
cudaError_t Launch(const StreamMatmulArguments& a, const Int4Weight& weight, const Plan& plan,
                   cudaStream_t stream) {
  return plan.digits                 ? Launch<T, kTiles, kLargeChunk, true>(a, weight, plan, stream)
         : plan.chunk == kLargeChunk ? Launch<T, kTiles, kLargeChunk>(a, weight, plan, stream)
         : plan.chunk == 64          ? Launch<T, kTiles, 64>(a, weight, plan, stream)
                                     : Launch<T, kTiles, 32>(a, weight, plan, stream);
}

template <typename T>
cudaError_t Launch(const StreamMatmulArguments& a, const Int4Weight& weight, const Plan& plan,
                   cudaStream_t stream) {
  return a.epilogue == Epilogue::kSiluMul ? Launch<T, 2>(a, weight, plan, stream)
                                          : Launch<T, 1>(a, weight, plan, stream);
}

}  // namespace

cudaError_t Run(const StreamMatmulArguments& arguments, const Int4Weight& weight,
                const DeviceLimits& limits, cudaStream_t stream) {
  StreamMatmulArguments a;
  Plan plan;
  if (const cudaError_t error = Prepare(arguments, weight, limits, &a, &plan);
      error != cudaSuccess) {
    return error;
  }
  if (plan.shape.slices > 1 && (a.partials == nullptr || a.counters == nullptr)) {
    return cudaErrorInvalidValue;
  }
  return a.type == GpuType::kFp16 ? Launch<__half>(a, weight, plan, stream)
                                  : Launch<__nv_bfloat16>(a, weight, plan, stream);
}

}  // namespace stream_int4

cudaError_t StreamInt4(const StreamMatmulArguments& arguments, const Int4Weight& weight,
                       cudaStream_t stream) {
  DeviceLimits limits;
  if (const cudaError_t error = GetDeviceLimits(&limits); error != cudaSuccess) {
    return error;
  }
  return stream_int4::Run(arguments, weight, limits, stream);
}

}  // namespace ferrite

// Attention whose bits do not depend on the batch (attention.h, prefill_block.cuh). A prompt's rows
// fold their segments of keys as they go. A decode's segments are shared out over blocks, and the
// last block of a sequence and kv head to end folds what all have left, in the same order.
#include <algorithm>

#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/plain_attention.h"
#include "cuda/kernels/prefill_block.cuh"

namespace ferrite {
namespace {

using attention::BlockAttention;
using attention::kChunk;
using attention::kNoMaximum;
using attention::kPrefillThreads;
using attention::kSegmentKeys;
using attention::Rounding;
using attention::Shape;
using attention::Work;

// Blocks that share a sequence's segments at most.
constexpr int kMaxSharers = 16;

// Row r of the group's result, out of the partials [segments, group, kDim + 2].
template <typename T, int kDim>
__device__ void FoldPartials(const float* partials, int group, int first, int last, T* out) {
  constexpr int kPartial = kDim + 2;
  for (int i = threadIdx.x; i < group * kDim; i += kPrefillThreads) {
    const int row = i / kDim;
    float maximum = kNoMaximum;
    float sum = 0;
    float value = 0;
    for (int segment = first; segment <= last; ++segment) {
      const float* partial = partials + (int64_t{segment} * group + row) * kPartial;
      const attention::Fold fold(maximum, __ldcg(partial + kDim));
      maximum = fold.maximum;
      sum = fold.Of(sum, __ldcg(partial + kDim + 1));
      value = fold.Of(value, __ldcg(partial + i % kDim));
    }
    out[i] = FromFloat<T>(value * (1.0f / sum));
  }
}

// Whether this is the last of `count` blocks to come here; what they wrote before is seen then.
__device__ bool IsLast(int32_t* counter, int count) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1) == count - 1;
    if (last) {
      *counter = 0;
    }
    __threadfence();
  }
  __syncthreads();
  return last;
}

// Grid: [kv heads, tiles of rows, sharers of a sequence's segments]; sequences have one token.
template <typename T, int kDim>
__global__ void __launch_bounds__(kPrefillThreads)
    FixedDecodeKernel(const __grid_constant__ AttentionArguments a, int32_t max_segments,
                      int32_t* counters) {
  using S = Shape<kDim, 1>;
  extern __shared__ __align__(128) unsigned char shared[];
  AllowNext();
  WaitForPrevious();
  const Work work = attention::FindWork(a, static_cast<int>(blockIdx.y), S::kRows);
  if (work.sequence < 0) {
    return;
  }
  const int kv_head = blockIdx.x;
  const int sharer = blockIdx.z;
  BlockAttention<T, kDim, 1, Rounding::kSegments> block(a, work, kv_head, shared);
  const int first = block.FirstSegment();
  const int last = block.LastSegment();
  const int segments = last - first + 1;
  if (sharer >= segments) {
    return;
  }
  block.LoadQueries();
  if (segments == 1) {
    block.RunSegment(first);
    block.Store();
    return;
  }
  const int group = work.num_rows;
  const int place = (work.sequence - a.first_sequence) * a.kv_heads + kv_head;
  const int64_t segment_floats = int64_t{group} * (kDim + 2);
  float* partials = a.workspace + int64_t{place} * max_segments * segment_floats;
  for (int segment = first + sharer; segment <= last; segment += gridDim.z) {
    block.RunSegment(segment);
    block.StorePartial(partials + segment * segment_floats);
  }
  const int tiles = (group + S::kRows - 1) / S::kRows;
  if (IsLast(counters + place, tiles * min(segments, static_cast<int>(gridDim.z)))) {
    T* out =
        static_cast<T*>(a.out) + (int64_t{work.first_token} * a.num_heads + kv_head * group) * kDim;
    FoldPartials<T, kDim>(partials, group, first, last, out);
  }
}

// Grid: [kv heads, tiles of rows]; the last tiles of a sequence, which see most keys, begin first.
template <typename T, int kDim>
__global__ void __launch_bounds__(kPrefillThreads)
    FixedPrefillKernel(const __grid_constant__ AttentionArguments a) {
  extern __shared__ __align__(128) unsigned char shared[];
  AllowNext();
  WaitForPrevious();
  const Work work =
      attention::FindWork(a, static_cast<int>(gridDim.y - 1 - blockIdx.y), Shape<kDim, 1>::kRows);
  if (work.sequence < 0) {
    return;
  }
  BlockAttention<T, kDim, 1, Rounding::kFixed> block(a, work, blockIdx.x, shared);
  block.Run();
  block.Store();
}

template <typename Kernel>
cudaError_t AllowShared(Kernel kernel, int bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

// Each sequence may end with a tile that is not full.
template <typename S>
unsigned Tiles(const AttentionArguments& a, int32_t num_tokens) {
  const int64_t rows = int64_t{num_tokens} * (a.num_heads / a.kv_heads);
  return static_cast<unsigned>(rows / S::kRows + a.num_sequences);
}

// launch(the head dimension as a constant), or the plain kernel where no other has it: a row of its
// results depends on nothing but the row either.
template <typename Launch>
cudaError_t ForDimension(const AttentionArguments& a, const Launch& launch, int32_t num_tokens,
                         cudaStream_t stream) {
  switch (a.block_size % kChunk == 0 ? a.head_dim : 0) {
    case 64:
      return launch(std::integral_constant<int, 64>());
    case 80:
      return launch(std::integral_constant<int, 80>());
    case 96:
      return launch(std::integral_constant<int, 96>());
    case 128:
      return launch(std::integral_constant<int, 128>());
    case 256:
      return launch(std::integral_constant<int, 256>());
    default:
      return PlainAttention(a, num_tokens, stream);
  }
}

template <typename T>
cudaError_t Decode(const AttentionArguments& a, const FixedDecodePlan& plan, int32_t* counters,
                   cudaStream_t stream) {
  const auto launch = [&](auto dimension) {
    constexpr int kDim = dimension;
    using S = Shape<kDim, 1>;
    const auto kernel = FixedDecodeKernel<T, kDim>;
    if (const cudaError_t error = AllowShared(kernel, S::kSharedBytes); error != cudaSuccess) {
      return error;
    }
    const dim3 grid(a.kv_heads, Tiles<S>(a, a.num_sequences),
                    std::min(plan.max_segments, kMaxSharers));
    return LaunchOverlapped(kernel, grid, kPrefillThreads, S::kSharedBytes, stream, a,
                            plan.max_segments, counters);
  };
  return ForDimension(a, launch, a.num_sequences, stream);
}

template <typename T>
cudaError_t Prefill(const AttentionArguments& a, int32_t num_tokens, cudaStream_t stream) {
  const auto launch = [&](auto dimension) {
    constexpr int kDim = dimension;
    using S = Shape<kDim, 1>;
    const auto kernel = FixedPrefillKernel<T, kDim>;
    if (const cudaError_t error = AllowShared(kernel, S::kSharedBytes); error != cudaSuccess) {
      return error;
    }
    return LaunchOverlapped(kernel, dim3(a.kv_heads, Tiles<S>(a, num_tokens)), kPrefillThreads,
                            S::kSharedBytes, stream, a);
  };
  return ForDimension(a, launch, num_tokens, stream);
}

}  // namespace

FixedDecodePlan PlanFixedDecodeAttention(int32_t num_sequences, int32_t num_heads, int32_t kv_heads,
                                         int32_t head_dim, int32_t max_kv_len) {
  FixedDecodePlan plan;
  plan.max_segments = (max_kv_len + kSegmentKeys - 1) / kSegmentKeys;
  if (plan.max_segments > 1) {
    plan.workspace_bytes =
        size_t(num_sequences) * num_heads * plan.max_segments * (head_dim + 2) * sizeof(float);
    plan.counters = size_t(num_sequences) * kv_heads;
  }
  return plan;
}

cudaError_t FixedDecodeAttention(const AttentionArguments& arguments, const FixedDecodePlan& plan,
                                 int32_t* counters, cudaStream_t stream) {
  return arguments.type == GpuType::kFp16
             ? Decode<__half>(arguments, plan, counters, stream)
             : Decode<__nv_bfloat16>(arguments, plan, counters, stream);
}

cudaError_t FixedPrefillAttention(const AttentionArguments& arguments, int32_t num_tokens,
                                  cudaStream_t stream) {
  return arguments.type == GpuType::kFp16 ? Prefill<__half>(arguments, num_tokens, stream)
                                          : Prefill<__nv_bfloat16>(arguments, num_tokens, stream);
}

}  // namespace ferrite

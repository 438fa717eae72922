// Decoding reads each key and value once for all query heads that share it, so memory is the bound:
// warps run apart from one another, each with its own ring of tiles on the way, and tensor cores do
// the arithmetic because plain multiply-adds could not keep up with grouped heads.
#include <algorithm>

#include "cuda/kernels/attention_parts.cuh"
#include "cuda/kernels/decode_warp.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/plain_attention.h"

namespace ferrite {
namespace {

using attention::ChunkRange;
using attention::kChunk;
using attention::kHeads;
using attention::kLeastChunksPerSplit;
using attention::kNoMaximum;
using attention::kStages;
using attention::MinChunksPerSplit;
using attention::RangeOfSplit;
using attention::WarpAttention;
using attention::WarpsFor;

constexpr int kMaxCluster = 16;         // splits that can merge inside a cluster
constexpr int kMaxPortableCluster = 8;  // on every chip that has clusters
constexpr int kMergeThreads = 128;

// What splits leave for the merge, in the workspace.
struct Partials {
  float* weighted;  // [num_sequences, num_heads, num_splits, head_dim], not normalised
  float2* scales;   // [num_sequences, num_heads, num_splits] (log2 maximum, sum)

  __device__ __forceinline__ Partials(const AttentionArguments& a, int num_splits)
      : weighted(a.workspace),
        scales(reinterpret_cast<float2*>(a.workspace + int64_t{a.num_sequences} * a.num_heads *
                                                           num_splits * a.head_dim)) {}
};

// What a block's warps store.
template <typename Warp>
constexpr int kMergeFloats = Warp::kWarps* kHeads*(Warp::kOutStride + 2);

// Adds up what the block's warps stored and calls use(head, dimension, weighted, scale) for each.
template <typename Warp, typename Use>
__device__ __forceinline__ void MergeWarps(const float* weighted, const float2* scales,
                                           int num_heads, Use use) {
  for (int i = threadIdx.x; i < num_heads * Warp::kDim; i += Warp::kWarps * 32) {
    const int head = i / Warp::kDim;
    const int d = i % Warp::kDim;
    float maximum = scales[head].x;
#pragma unroll
    for (int w = 1; w < Warp::kWarps; ++w) {
      maximum = fmaxf(maximum, scales[w * kHeads + head].x);
    }
    float value = 0;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < Warp::kWarps; ++w) {
      const float2 part = scales[w * kHeads + head];
      const float weight = attention::Exp2(part.x - maximum);
      sum += weight * part.y;
      value += weight * weighted[(w * kHeads + head) * Warp::kOutStride + d];
    }
    use(head, d, value, make_float2(maximum, sum));
  }
}

// Adds up the splits of a cluster, a slice of the output each. Splits without work have exited.
template <typename Warp, typename T>
__device__ __forceinline__ void MergeCluster(float* weighted, const float2* scales, int num_heads,
                                             int num_splits, T* out) {
  constexpr int kDim = Warp::kDim;
  // Behind what MergeWarps reads.
  float* merged = weighted + kMergeFloats<Warp>;
  float* maxima = merged + kHeads * kDim;
  float* sums = maxima + kHeads;
  MergeWarps<Warp>(weighted, scales, num_heads, [&](int head, int d, float value, float2 scale) {
    merged[head * kDim + d] = value;
    if (d == 0) {
      maxima[head] = scale.x;
      sums[head] = scale.y;
    }
  });
  attention::SyncCluster();
  const int threads = num_splits * Warp::kWarps * 32;
  for (int i = blockIdx.y * Warp::kWarps * 32 + threadIdx.x; i < num_heads * kDim; i += threads) {
    const int head = i / kDim;
    float part_maxima[kMaxCluster];
    float maximum = kNoMaximum;
#pragma unroll
    for (int s = 0; s < kMaxCluster; ++s) {
      part_maxima[s] = s < num_splits ? attention::LoadFromBlock(maxima + head, s) : kNoMaximum;
      maximum = fmaxf(maximum, part_maxima[s]);
    }
    float sum = 0;
    float value = 0;
#pragma unroll
    for (int s = 0; s < kMaxCluster; ++s) {
      if (s < num_splits) {
        const float weight = attention::Exp2(part_maxima[s] - maximum);
        sum += weight * attention::LoadFromBlock(sums + head, s);
        value += weight * attention::LoadFromBlock(merged + i, s);
      }
    }
    out[i] = FromFloat<T>(value / sum);
  }
  attention::SyncCluster();  // nobody leaves while others read its memory
}

template <typename Warp>
constexpr size_t DecodeSharedBytes() {
  const size_t rings = size_t{Warp::kWarps} * kStages * Warp::kStageBytes;
  const size_t merge = (kMergeFloats<Warp> + kHeads * (Warp::kDim + 2)) * sizeof(float);
  return std::max(rings, merge);
}

constexpr size_t kMostSharedBytes = 200 << 10;  // that a wide block takes

// Grid: [tiles of kHeads query heads of one kv head, splits, sequences].
template <typename T, int kDim, bool kPrepares, int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
    DecodeKernel(const __grid_constant__ AttentionArguments a, int num_splits, bool clustered) {
  using Warp = WarpAttention<T, kDim, kPrepares, kWarps>;
  extern __shared__ __align__(128) unsigned char shared[];
  AllowNext();
  if (!a.inputs_settled) {
    WaitForPrevious();
  }
  const int sequence = a.first_sequence + blockIdx.z;
  const int slot = a.seq_slots[sequence];
  const int kv_len = a.kv_lens[sequence];
  const int64_t row = a.cu_seqlens[sequence];
  const ChunkRange range = RangeOfSplit(kv_len, a.window, num_splits, blockIdx.y, Warp::kMinChunks);
  if (slot < 0 || range.first >= range.end) {
    WaitForPrevious();  // or the kernel after might not wait for the one before
    return;
  }
  const int group = a.num_heads / a.kv_heads;
  const int tiles = (group + kHeads - 1) / kHeads;
  const int kv_head = blockIdx.x / tiles;
  const int first_in_group = blockIdx.x % tiles * kHeads;
  const int first_head = kv_head * group + first_in_group;
  const int num_heads = min(kHeads, group - first_in_group);
  const int warp = threadIdx.x / 32;

  Warp work(a, slot, kv_len, kv_head,
            attention::SharedAddress(shared) + warp * kStages * Warp::kStageBytes);
  const T* q =
      static_cast<const T*>(a.qkv) + (row * (a.num_heads + 2 * a.kv_heads) + first_head) * kDim;
  if constexpr (kPrepares) {
    work.Start(range.first + warp, range.end);
    work.LoadTurns();
    WaitForPrevious();
    const float* heads = a.preparation.raw + row * (a.num_heads + 2 * a.kv_heads) * kDim;
    work.LoadNewest(heads + (a.num_heads + kv_head) * kDim,
                    heads + (a.num_heads + a.kv_heads + kv_head) * kDim);
    work.PrepareQuery(heads + first_head * kDim, num_heads);
    work.PrepareNewest(/*write=*/first_in_group == 0);
  } else if (a.inputs_settled) {
    work.Start(range.first + warp, range.end);
    WaitForPrevious();
    work.LoadQuery(q, num_heads);
  } else {  // the query would otherwise queue behind keys and values
    work.LoadQuery(q, num_heads);
    work.Start(range.first + warp, range.end);
  }
  work.Run();

  __syncthreads();  // the rings become the warps' results
  float* weighted = reinterpret_cast<float*>(shared);
  float2* scales = reinterpret_cast<float2*>(weighted + Warp::kWarps * kHeads * Warp::kOutStride);
  work.Store(weighted + warp * kHeads * Warp::kOutStride, scales + warp * kHeads);
  __syncthreads();
  T* out = static_cast<T*>(a.out) + (row * a.num_heads + first_head) * kDim;
  if (range.num_splits == 1) {
    MergeWarps<Warp>(weighted, scales, num_heads, [&](int head, int d, float value, float2 scale) {
      out[head * kDim + d] = FromFloat<T>(value / scale.y);
    });
  } else if (clustered) {
    MergeCluster<Warp>(weighted, scales, num_heads, range.num_splits, out);
  } else {
    const Partials partials(a, num_splits);
    MergeWarps<Warp>(weighted, scales, num_heads, [&](int head, int d, float value, float2 scale) {
      const int64_t part =
          (int64_t{blockIdx.z} * a.num_heads + first_head + head) * num_splits + blockIdx.y;
      partials.weighted[part * kDim + d] = value;
      if (d == 0) {
        partials.scales[part] = scale;
      }
    });
  }
}

// Grid: [query heads, sequences]. Does nothing where one split did it all.
template <typename T, int kDim>
__global__ void __launch_bounds__(kMergeThreads)
    MergeKernel(const __grid_constant__ AttentionArguments a, int num_splits, int min_chunks) {
  constexpr int kLanes = kDim / 4;                // that share a split, four dimensions each
  constexpr int kParts = kMergeThreads / kLanes;  // splits at a time
  __shared__ float4 values[kParts][kLanes];
  AllowNext();
  WaitForPrevious();
  const int sequence = a.first_sequence + blockIdx.y;
  const int used =
      RangeOfSplit(a.kv_lens[sequence], a.window, num_splits, 0, min_chunks).num_splits;
  if (a.seq_slots[sequence] < 0 || used <= 1) {
    return;
  }
  const Partials partials(a, num_splits);
  const int64_t first = (int64_t{blockIdx.y} * a.num_heads + blockIdx.x) * num_splits;
  float maximum = kNoMaximum;
  for (int s = 0; s < used; ++s) {
    maximum = fmaxf(maximum, partials.scales[first + s].x);
  }
  float sum = 0;
  for (int s = 0; s < used; ++s) {
    const float2 scale = partials.scales[first + s];
    sum += attention::Exp2(scale.x - maximum) * scale.y;
  }
  const int part = threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  if (part < kParts) {
    float4 value = make_float4(0, 0, 0, 0);
    for (int s = part; s < used; s += kParts) {
      const float weight = attention::Exp2(partials.scales[first + s].x - maximum);
      const float4 from =
          reinterpret_cast<const float4*>(partials.weighted + (first + s) * kDim)[lane];
      value.x += weight * from.x;
      value.y += weight * from.y;
      value.z += weight * from.z;
      value.w += weight * from.w;
    }
    values[part][lane] = value;
  }
  __syncthreads();
  T* out =
      static_cast<T*>(a.out) + (int64_t{a.cu_seqlens[sequence]} * a.num_heads + blockIdx.x) * kDim;
  for (int d = threadIdx.x; d < kDim; d += kMergeThreads) {
    float value = 0;
    for (int p = 0; p < kParts; ++p) {
      value += reinterpret_cast<const float*>(values[p])[d];
    }
    out[d] = FromFloat<T>(value / sum);
  }
}

// LaunchOverlapped for clusters of all the splits of a context.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchClusters(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                           size_t shared_bytes, cudaStream_t stream, Arguments... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = 1;
  attributes[1].val.clusterDim.y = grid.y;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Whether the machine code, or the PTX that it came from, has the cluster instructions.
template <typename Kernel>
cudaError_t HasClusters(Kernel kernel, bool* has) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  *has = error == cudaSuccess && attributes.ptxVersion >= 90;
  return error;
}

template <typename T, int kDim, bool kWide>
cudaError_t Launch(const AttentionArguments& a, int num_splits, cudaStream_t stream) {
  constexpr int kWarps = WarpsFor(kDim, kWide);
  constexpr size_t kShared = DecodeSharedBytes<WarpAttention<T, kDim, false, kWarps>>();
  static_assert(kShared <= kMostSharedBytes);
  auto* kernel = DecodeKernel<T, kDim, false, kWarps>;
  if constexpr (kDim % 32 == 0) {
    kernel = a.prepares ? DecodeKernel<T, kDim, true, kWarps> : kernel;
  }
  if (const cudaError_t error = cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kShared));
      error != cudaSuccess) {
    return error;
  }
  bool clustered = false;
  if (num_splits > 1 && num_splits <= kMaxCluster) {
    if (const cudaError_t error = HasClusters(kernel, &clustered); error != cudaSuccess) {
      return error;
    }
  }
  if (clustered && num_splits > kMaxPortableCluster) {
    if (const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
        error != cudaSuccess) {
      return error;
    }
  }
  const int tiles = (a.num_heads / a.kv_heads + kHeads - 1) / kHeads;
  const dim3 grid(a.kv_heads * tiles, num_splits, a.num_sequences);
  const int threads = kWarps * 32;
  if (clustered) {
    return LaunchClusters(kernel, grid, threads, kShared, stream, a, num_splits, true);
  }
  if (const cudaError_t error =
          LaunchOverlapped(kernel, grid, threads, kShared, stream, a, num_splits, false);
      error != cudaSuccess) {
    return error;
  }
  return num_splits == 1
             ? cudaSuccess
             : LaunchOverlapped(MergeKernel<T, kDim>, dim3(a.num_heads, a.num_sequences),
                                kMergeThreads, 0, stream, a, num_splits, MinChunksPerSplit(kWarps));
}

template <typename T, bool kWide>
cudaError_t LaunchTyped(const AttentionArguments& a, int num_splits, cudaStream_t stream) {
  switch (a.block_size % kChunk == 0 ? a.head_dim : 0) {
    case 64:
      return Launch<T, 64, kWide>(a, num_splits, stream);
    case 80:
      return Launch<T, 80, kWide>(a, num_splits, stream);
    case 96:
      return Launch<T, 96, kWide>(a, num_splits, stream);
    case 128:
      return Launch<T, 128, kWide>(a, num_splits, stream);
    case 256:
      return Launch<T, 256, kWide>(a, num_splits, stream);
    default:
      return PlainAttention(a, a.num_sequences, stream);
  }
}

template <typename T>
cudaError_t LaunchTyped(const AttentionArguments& a, const DecodePlan& plan, cudaStream_t stream) {
  bool wide = plan.wide;
  if (wide) {  // unless the chip has less shared memory
    int device = 0;
    int shared_bytes = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) {
      error =
          cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    }
    if (error != cudaSuccess) {
      return error;
    }
    wide = static_cast<size_t>(shared_bytes) >= kMostSharedBytes;
  }
  return wide ? LaunchTyped<T, true>(a, plan.num_splits, stream)
              : LaunchTyped<T, false>(a, plan.num_splits, stream);
}

}  // namespace

DecodePlan PlanDecodeAttention(int32_t num_sequences, int32_t num_heads, int32_t kv_heads,
                               int32_t head_dim, int32_t max_kv_len, int32_t num_multiprocessors) {
  const int tiles = (num_heads / kv_heads + kHeads - 1) / kHeads;
  const int64_t whole = int64_t{num_sequences} * kv_heads * tiles;  // blocks without splits
  const int64_t max_chunks = (int64_t{max_kv_len} + kChunk - 1) / kChunk;
  const int64_t limit = std::max<int64_t>(1, max_chunks / kLeastChunksPerSplit);
  // Measured on an H200 at head_dim 128, 8 kv heads: eight contexts of 1,024 take 12.0, 13.2 and
  // 16.0 us with 1, 2 and 4 splits, one of 16,384 takes 27.7 and 29.2 us with 8 and 16. Large
  // clusters of blocks that need a multiprocessor each wait long for a place.
  const int64_t half = num_multiprocessors / 2 / whole;
  const int64_t wanted =
      head_dim < 128 ? std::min(num_multiprocessors / whole, std::max<int64_t>(half, 2)) : half;
  DecodePlan plan;
  plan.num_splits =
      static_cast<int32_t>(std::min({std::max<int64_t>(1, wanted), limit, int64_t{kMaxCluster}}));
  plan.wide = whole * plan.num_splits <= num_multiprocessors;
  if (plan.num_splits > 1) {
    plan.workspace_bytes = sizeof(float) * num_sequences * num_heads * plan.num_splits *
                           (static_cast<size_t>(head_dim) + 2);
  }
  return plan;
}

bool CanPrepareHeads(int32_t head_dim, int32_t block_size) {
  return block_size % kChunk == 0 &&
         (head_dim == 64 || head_dim == 96 || head_dim == 128 || head_dim == 256);
}

cudaError_t DecodeAttention(const AttentionArguments& arguments, const DecodePlan& plan,
                            cudaStream_t stream) {
  if (arguments.prepares &&
      !(arguments.inputs_settled && CanPrepareHeads(arguments.head_dim, arguments.block_size))) {
    return cudaErrorInvalidValue;
  }
  return arguments.type == GpuType::kFp16 ? LaunchTyped<__half>(arguments, plan, stream)
                                          : LaunchTyped<__nv_bfloat16>(arguments, plan, stream);
}

}  // namespace ferrite

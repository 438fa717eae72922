// Decoding reads each key and value once for all query heads that share it, so memory is the bound:
// warps run apart from one another, each with its own ring of tiles on the way, and tensor cores do
// the arithmetic because plain multiply-adds could not keep up with grouped heads. Keys are the
// rows of the products and query heads the columns, so that eight heads fill a product exactly.
#include <algorithm>

#include "cuda/kernels/attention_parts.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/plain_attention.h"

namespace ferrite {
namespace {

using attention::kAllLanes;
using attention::kChunk;
using attention::kNoMaximum;

constexpr int kHeads = 8;  // query heads a block
constexpr int kStages = 3;
constexpr int kMaxCluster = 16;         // splits that can merge inside a cluster
constexpr int kMaxPortableCluster = 8;  // on every chip that has clusters
constexpr int kMergeThreads = 128;
constexpr float kLog2E = 1.4426950408889634f;

constexpr int WarpsFor(int dim) { return dim > 128 ? 2 : 4; }
constexpr int kMinChunksPerSplit = 4;

// The chunks of kChunk keys that a split takes: whole [first, end), empty where there is no work.
struct ChunkRange {
  int first;
  int end;
  int num_splits;  // that have work
};

__device__ __forceinline__ ChunkRange RangeOfSplit(int kv_len, int window, int num_splits,
                                                   int split) {
  const int begin = window > 0 ? max(0, kv_len - window) / kChunk : 0;
  const int end = (kv_len + kChunk - 1) / kChunk;
  const int each = max((end - begin + num_splits - 1) / num_splits, kMinChunksPerSplit);
  const int first = min(begin + split * each, end);
  return {first, min(first + each, end), (end - begin + each - 1) / each};
}

// What splits leave for the merge, in the workspace.
struct Partials {
  float* weighted;  // [num_sequences, num_heads, num_splits, head_dim], not normalised
  float2* scales;   // [num_sequences, num_heads, num_splits] (log2 maximum, sum)

  __device__ __forceinline__ Partials(const AttentionArguments& a, int num_splits)
      : weighted(a.workspace),
        scales(reinterpret_cast<float2*>(a.workspace + int64_t{a.num_sequences} * a.num_heads *
                                                           num_splits * a.head_dim)) {}
};

// One warp's part of the work: chunks first, first + kWarps, ... of the sequence.
template <typename T, int kHeadDim>
class WarpAttention {
 public:
  static constexpr int kDim = kHeadDim;
  static constexpr int kWarps = WarpsFor(kDim);
  using Rows = attention::TileRows<kDim>;
  static constexpr int kTileBytes = kChunk * Rows::kStride;
  static constexpr int kStageBytes = 2 * kTileBytes;  // keys, values

  __device__ __forceinline__ WarpAttention(const AttentionArguments& arguments, int slot,
                                           int kv_len, int kv_head, uint32_t shared)
      : a_(arguments),
        table_(arguments.block_tables + int64_t{slot} * arguments.blocks_per_slot),
        kv_len_(kv_len),
        window_begin_(arguments.window > 0 ? max(0, kv_len - arguments.window) : 0),
        kv_head_(kv_head),
        shared_(shared) {}

  // q [num_heads, kDim] of the token, beginning at this block's first head.
  __device__ __forceinline__ void LoadQuery(const T* q, int num_heads) {
    const int head = lane_ / 4;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(q + head * kDim);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      q_[k][0] = head < num_heads ? words[k * 8 + lane_ % 4] : 0;
      q_[k][1] = head < num_heads ? words[k * 8 + lane_ % 4 + 4] : 0;
    }
  }

  // Starts copying, all but the sequence's last chunk.
  __device__ __forceinline__ void Start(int first, int end) {
    first_ = first;
    count_ = max(0, (end - first + kWarps - 1) / kWarps);
    const int last = count_ - 1;
    newest_ = first_ + last * kWarps == (kv_len_ - 1) / kChunk ? last : -1;
    places_ = PlaceOf(lane_);
    next_places_ = PlaceOf(32 + lane_);
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      if (i != newest_) {
        Copy(i, i);
      }
      attention::CommitCopies();
    }
  }

  __device__ __forceinline__ void Run() {
    if (newest_ >= 0 && newest_ < kStages) {
      Copy(newest_, newest_);
      attention::CommitCopies();
    }
    int stage = 0;
    for (int i = 0; i < count_; ++i) {
      if (i + 1 < count_) {
        attention::WaitForCopies<kStages - 1>();
      } else {  // also the group that may have come late
        attention::WaitForCopies<0>();
      }
      __syncwarp();
      Attend(shared_ + stage * kStageBytes, (first_ + i * kWarps) * kChunk);
      __syncwarp();
      if ((i + kStages) % 32 == 0) {  // lanes read the places of 32 tiles at once, well ahead
        places_ = next_places_;
        next_places_ = PlaceOf(i + kStages + 32 + lane_);
      }
      Copy(i + kStages, stage);
      attention::CommitCopies();
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    attention::WaitForCopies<0>();
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) {
      sum_[0] += __shfl_xor_sync(kAllLanes, sum_[0], mask);
      sum_[1] += __shfl_xor_sync(kAllLanes, sum_[1], mask);
    }
  }

  // weighted [kHeads, kStride] and scales [kHeads] of this warp, in shared memory.
  static constexpr int kOutStride = kDim + 4;
  static constexpr int kMergeFloats = kWarps * kHeads * (kOutStride + 2);
  __device__ __forceinline__ void Store(float* weighted, float2* scales) const {
    const int head = lane_ % 4 * 2;
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      float* to = weighted + head * kOutStride + d * 16 + lane_ / 4;
      to[0] = out_[d][0];
      to[kOutStride] = out_[d][1];
      to[8] = out_[d][2];
      to[kOutStride + 8] = out_[d][3];
    }
    if (lane_ < 4) {
      scales[head] = make_float2(maximum_[0], sum_[0]);
      scales[head + 1] = make_float2(maximum_[1], sum_[1]);
    }
  }

 private:
  // Where this warp's i-th chunk lies in the cache.
  __device__ __forceinline__ int32_t PlaceOf(int i) const {
    return i < count_ ? attention::CacheChunk(table_, first_ + i * kWarps, a_.kv_heads, kv_head_,
                                              a_.block_size / kChunk)
                      : 0;
  }

  __device__ __forceinline__ void Copy(int i, int stage) {
    const int32_t place = __shfl_sync(kAllLanes, places_, i % 32);
    if (i < count_) {
      const int64_t offset = int64_t{place} * (kChunk * kDim);
      const int num_valid = kv_len_ - (first_ + i * kWarps) * kChunk;
      const uint32_t to = shared_ + stage * kStageBytes;
      attention::CopyChunk<kDim>(to, static_cast<const T*>(a_.k_cache) + offset, num_valid, lane_);
      attention::CopyChunk<kDim>(to + kTileBytes, static_cast<const T*>(a_.v_cache) + offset,
                                 num_valid, lane_);
    }
  }

  __device__ __forceinline__ void Attend(uint32_t tile, int first_key) {
    float even[4] = {};
    float odd[4] = {};  // two chains of products, for half the latency
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t keys[4];
      attention::LoadMatrices(keys, tile + Rows::Offset(lane_ % 16, 2 * k + lane_ / 16));
      attention::MultiplyAdd<T>(k % 2 == 0 ? even : odd, keys, q_[k][0], q_[k][1]);
    }
    const float scale = a_.scale * kLog2E;
    float scores[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = first_key + lane_ / 4 + i / 2 * 8;
      scores[i] = key >= window_begin_ && key < kv_len_ ? (even[i] + odd[i]) * scale : -INFINITY;
    }
    RaiseMaximum(scores);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[i] = attention::Exp2(scores[i] - maximum_[i % 2]);
      sum_[i % 2] += scores[i];
    }
    const uint32_t low = attention::Transpose(attention::Pack<T>(scores[0], scores[1]));
    const uint32_t high = attention::Transpose(attention::Pack<T>(scores[2], scores[3]));
    const int value_row = lane_ % 8 + lane_ / 16 * 8;
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      uint32_t values[4];
      attention::LoadTransposed(values,
                                tile + kTileBytes + Rows::Offset(value_row, 2 * d + lane_ / 8 % 2));
      attention::MultiplyAdd<T>(out_[d], values, low, high);
    }
  }

  __device__ __forceinline__ void RaiseMaximum(const float (&scores)[4]) {
    float highest[2] = {fmaxf(scores[0], scores[2]), fmaxf(scores[1], scores[3])};
    if (!__any_sync(kAllLanes, highest[0] > maximum_[0] + attention::kMaximumSlack ||
                                   highest[1] > maximum_[1] + attention::kMaximumSlack)) {
      return;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) {
        highest[h] = fmaxf(highest[h], __shfl_xor_sync(kAllLanes, highest[h], mask));
      }
      const float maximum = fmaxf(maximum_[h], highest[h]);
      const float keep = attention::Exp2(maximum_[h] - maximum);
      maximum_[h] = maximum;
      sum_[h] *= keep;
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) {
        out_[d][h] *= keep;
        out_[d][h + 2] *= keep;
      }
    }
  }

  const AttentionArguments& a_;
  const int32_t* table_;
  const int kv_len_;
  const int window_begin_;
  const int kv_head_;
  const uint32_t shared_;  // [kStages][keys, values][kChunk] rows
  const int lane_ = threadIdx.x % 32;
  int first_ = 0;
  int count_ = 0;
  int newest_ = -1;  // the tile that has the sequence's last key
  int32_t places_ = 0;
  int32_t next_places_ = 0;
  uint32_t q_[kDim / 16][2];
  // Of query heads 2 (lane % 4) and the one after; sums are over the lane's own keys until the end.
  float maximum_[2] = {kNoMaximum, kNoMaximum};
  float sum_[2] = {};
  float out_[kDim / 16][4] = {};
};

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
template <typename T, int kDim>
__device__ __forceinline__ void MergeCluster(float* weighted, const float2* scales, int num_heads,
                                             int num_splits, T* out) {
  using Warp = WarpAttention<T, kDim>;
  // Behind what MergeWarps reads.
  float* merged = weighted + Warp::kMergeFloats;
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

template <typename T, int kDim>
constexpr size_t DecodeSharedBytes() {
  using Warp = WarpAttention<T, kDim>;
  const size_t rings = size_t{Warp::kWarps} * kStages * Warp::kStageBytes;
  const size_t merge = (Warp::kMergeFloats + kHeads * (kDim + 2)) * sizeof(float);
  return std::max(rings, merge);
}

// Grid: [tiles of kHeads query heads of one kv head, splits, sequences].
template <typename T, int kDim>
__global__ void __launch_bounds__(WarpsFor(kDim) * 32)
    DecodeKernel(const __grid_constant__ AttentionArguments a, int num_splits, bool clustered) {
  using Warp = WarpAttention<T, kDim>;
  extern __shared__ __align__(128) unsigned char shared[];
  AllowNext();
  if (!a.inputs_settled) {
    WaitForPrevious();
  }
  const int sequence = a.first_sequence + blockIdx.z;
  const int slot = a.seq_slots[sequence];
  const int kv_len = a.kv_lens[sequence];
  const int64_t row = a.cu_seqlens[sequence];
  const ChunkRange range = RangeOfSplit(kv_len, a.window, num_splits, blockIdx.y);
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
  if (a.inputs_settled) {
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
    MergeCluster<T, kDim>(weighted, scales, num_heads, range.num_splits, out);
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
    MergeKernel(const __grid_constant__ AttentionArguments a, int num_splits) {
  constexpr int kLanes = kDim / 4;                // that share a split, four dimensions each
  constexpr int kParts = kMergeThreads / kLanes;  // splits at a time
  __shared__ float4 values[kParts][kLanes];
  AllowNext();
  WaitForPrevious();
  const int sequence = a.first_sequence + blockIdx.y;
  const int used = RangeOfSplit(a.kv_lens[sequence], a.window, num_splits, 0).num_splits;
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

template <typename T, int kDim>
cudaError_t Launch(const AttentionArguments& a, int num_splits, cudaStream_t stream) {
  constexpr size_t kShared = DecodeSharedBytes<T, kDim>();
  const auto kernel = DecodeKernel<T, kDim>;
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
  const int threads = WarpsFor(kDim) * 32;
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
                                kMergeThreads, 0, stream, a, num_splits);
}

template <typename T>
cudaError_t LaunchTyped(const AttentionArguments& a, int num_splits, cudaStream_t stream) {
  switch (a.block_size % kChunk == 0 ? a.head_dim : 0) {
    case 64:
      return Launch<T, 64>(a, num_splits, stream);
    case 80:
      return Launch<T, 80>(a, num_splits, stream);
    case 96:
      return Launch<T, 96>(a, num_splits, stream);
    case 128:
      return Launch<T, 128>(a, num_splits, stream);
    case 256:
      return Launch<T, 256>(a, num_splits, stream);
    default:
      return PlainAttention(a, a.num_sequences, stream);
  }
}

}  // namespace

DecodePlan PlanDecodeAttention(int32_t num_sequences, int32_t num_heads, int32_t kv_heads,
                               int32_t head_dim, int32_t max_kv_len, int32_t num_multiprocessors) {
  const int tiles = (num_heads / kv_heads + kHeads - 1) / kHeads;
  const int64_t whole = int64_t{num_sequences} * kv_heads * tiles;  // blocks without splits
  const int64_t max_chunks = (int64_t{max_kv_len} + kChunk - 1) / kChunk;
  const int64_t limit = std::max<int64_t>(1, max_chunks / kMinChunksPerSplit);
  // Measured on an H200 at head_dim 128, 8 kv heads: eight contexts of 1,024 take 12.0, 13.2 and
  // 16.0 us with 1, 2 and 4 splits, one of 16,384 takes 27.7 and 29.2 us with 8 and 16. Short rows
  // have half as much on the way a block; that they want twice the blocks is a guess.
  const int64_t wanted = head_dim < 128 ? num_multiprocessors : num_multiprocessors / 2;
  DecodePlan plan;
  plan.num_splits = static_cast<int32_t>(
      std::min({std::max<int64_t>(1, wanted / whole), limit, int64_t{kMaxCluster}}));
  if (plan.num_splits > 1) {
    plan.workspace_bytes = sizeof(float) * num_sequences * num_heads * plan.num_splits *
                           (static_cast<size_t>(head_dim) + 2);
  }
  return plan;
}

cudaError_t DecodeAttention(const AttentionArguments& arguments, const DecodePlan& plan,
                            cudaStream_t stream) {
  return arguments.type == GpuType::kFp16
             ? LaunchTyped<__half>(arguments, plan.num_splits, stream)
             : LaunchTyped<__nv_bfloat16>(arguments, plan.num_splits, stream);
}

}  // namespace ferrite

// Prefill is bound by the tensor cores. Four warps share a tile of rows, a row being a (token,
// query head) of one kv head in that order, so that grouped heads share keys and values and short
// chunks still fill tiles; two tiles of keys and values take turns in shared memory.
#include "cuda/kernels/attention_parts.cuh"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/plain_attention.h"

namespace ferrite {
namespace {

using attention::kAllLanes;
using attention::kChunk;
using attention::kNoMaximum;

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr float kLog2E = 1.4426950408889634f;

// Sixteens of rows a warp, two where registers allow: each key fragment read from shared memory
// serves them all.
constexpr int MaxWarpTiles(int dim) { return dim > 128 ? 1 : 2; }

// Keys a tile: as many as 99 KiB of shared memory allow.
template <int kDim, int kTilesOfWarp>
struct Shape {
  static constexpr int kWarpTiles = kTilesOfWarp;
  static constexpr int kWarpRows = kWarpTiles * 16;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kKeys = kDim > 128 ? 32 : 64;
  using Rows = attention::TileRows<kDim>;
  static constexpr int kQueryBytes = kRows * Rows::kStride;
  static constexpr int kTileBytes = kKeys * Rows::kStride;
  static constexpr int kSharedBytes = kQueryBytes + 4 * kTileBytes;
};

// A block's part of one sequence. Rows of one kv head count from its first token's first head.
struct Work {
  int sequence = -1;  // -1: none
  int first_row = 0;
  int num_rows = 0;     // of the sequence, not only of the block
  int first_token = 0;  // of the sequence, in the batch
  int num_tokens = 0;
};

// The tile-th tile of rows, counting through all sequences. Called by whole warps.
__device__ Work FindWork(const AttentionArguments& a, int tile, int rows_per_tile) {
  const int lane = threadIdx.x % 32;
  const int group = a.num_heads / a.kv_heads;
  for (int base = 0; base < a.num_sequences; base += 32) {
    const int sequence = a.first_sequence + base + lane;
    int first_token = 0;
    int num_tokens = 0;
    if (base + lane < a.num_sequences && a.seq_slots[sequence] >= 0) {
      first_token = a.cu_seqlens[sequence];
      num_tokens = a.cu_seqlens[sequence + 1] - first_token;
    }
    const int tiles = (num_tokens * group + rows_per_tile - 1) / rows_per_tile;
    int end = tiles;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(kAllLanes, end, distance);
      end += lane >= distance ? other : 0;
    }
    const unsigned found = __ballot_sync(kAllLanes, end > tile);
    if (found != 0) {
      const int source = __ffs(found) - 1;
      const int before = __shfl_sync(kAllLanes, end - tiles, source);
      Work work;
      work.sequence = __shfl_sync(kAllLanes, sequence, source);
      work.first_token = __shfl_sync(kAllLanes, first_token, source);
      work.num_tokens = __shfl_sync(kAllLanes, num_tokens, source);
      work.num_rows = work.num_tokens * group;
      work.first_row = (tile - before) * rows_per_tile;
      return work;
    }
    tile -= __shfl_sync(kAllLanes, end, 31);
  }
  return {};
}

// One block's attention. All of it is registers once inlined.
template <typename T, int kDim, int kWarpTiles>
class BlockAttention {
 public:
  using S = Shape<kDim, kWarpTiles>;
  using Rows = typename S::Rows;
  static constexpr int kTiles = S::kWarpTiles;
  static constexpr int kKeys = S::kKeys;

  __device__ __forceinline__ BlockAttention(const AttentionArguments& arguments, const Work& work,
                                            int kv_head, unsigned char* shared)
      : a_(arguments),
        work_(work),
        kv_head_(kv_head),
        group_(arguments.num_heads / arguments.kv_heads),
        context_(arguments.kv_lens[work.sequence] - work.num_tokens),
        table_(arguments.block_tables +
               int64_t{arguments.seq_slots[work.sequence]} * arguments.blocks_per_slot),
        shared_(shared),
        queries_(attention::SharedAddress(shared)),
        tiles_(queries_ + S::kQueryBytes) {
    const int first_token = work.first_row / group_;
    const int last_token = (min(work.first_row + S::kRows, work.num_rows) - 1) / group_;
    end_key_ = context_ + last_token + 1;
    all_see_end_ = context_ + first_token + 1;
    first_key_ = a_.window > 0 ? max(0, all_see_end_ - a_.window) / kChunk * kChunk : 0;
    all_see_begin_ = a_.window > 0 ? end_key_ - a_.window : 0;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      maximum_[t][0] = maximum_[t][1] = kNoMaximum;
    }
  }

  __device__ __forceinline__ void Run() {
    const int num_tiles = (end_key_ - first_key_ + kKeys - 1) / kKeys;
    LoadQueries();
    place_ = PlaceOf(0);
    StartCopy(0);
    for (int tile = 0; tile < num_tiles; ++tile) {
      attention::WaitForCopies<0>();
      __syncthreads();  // the tile is there, and everybody is done with the one before it
      if (tile + 1 < num_tiles) {
        StartCopy(tile + 1);
      }
      const int first_key = first_key_ + tile * kKeys;
      const uint32_t keys = tiles_ + tile % 2 * (2 * S::kTileBytes);
      float scores[kTiles][kKeys / 8][4] = {};
      MultiplyKeys(keys, scores);
      if (first_key + kKeys > all_see_end_ || first_key < all_see_begin_) {
        Mask(first_key, scores);
      }
      RaiseMaximum(scores);
      Exponentiate(scores);
      MultiplyValues(keys + S::kTileBytes, scores);
    }
  }

  __device__ __forceinline__ void Store() {
    // Through this warp's queries, which no other warp reads.
    unsigned char* mine = shared_ + warp_ * S::kWarpRows * Rows::kStride;
    __syncwarp();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = sum_[t][half];
        sum += __shfl_xor_sync(kAllLanes, sum, 1);
        sum += __shfl_xor_sync(kAllLanes, sum, 2);
        const float inverse = 1.0f / sum;
        const int row = t * 16 + half * 8 + lane_ / 4;
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d) {
          *reinterpret_cast<uint32_t*>(mine + Rows::Offset(row, d) + lane_ % 4 * 4) =
              attention::Pack<T>(out_[t][d][2 * half] * inverse,
                                 out_[t][d][2 * half + 1] * inverse);
        }
      }
    }
    __syncwarp();
    for (int i = lane_; i < S::kWarpRows * Rows::kVectors; i += 32) {
      const int row = work_.first_row + warp_ * S::kWarpRows + i / Rows::kVectors;
      if (row < work_.num_rows) {
        const int64_t token = work_.first_token + row / group_;
        const int head = kv_head_ * group_ + row % group_;
        T* to = static_cast<T*>(a_.out) + (token * a_.num_heads + head) * kDim;
        reinterpret_cast<uint4*>(to)[i % Rows::kVectors] = *reinterpret_cast<const uint4*>(
            mine + Rows::Offset(i / Rows::kVectors, i % Rows::kVectors));
      }
    }
  }

 private:
  __device__ __forceinline__ void LoadQueries() {
    const T* qkv = static_cast<const T*>(a_.qkv);
    const int64_t token_stride = int64_t{a_.num_heads + 2 * a_.kv_heads} * kDim;
    for (int i = threadIdx.x; i < S::kRows * Rows::kVectors; i += kThreads) {
      const int r = i / Rows::kVectors;
      const int vector = i % Rows::kVectors;
      const int row = min(work_.first_row + r, work_.num_rows - 1);
      const T* from = qkv + (work_.first_token + row / group_) * token_stride +
                      (kv_head_ * group_ + row % group_) * kDim + vector * 8;
      attention::CopyAsync(queries_ + Rows::Offset(r, vector), from,
                           work_.first_row + r < work_.num_rows);
    }
  }

  // Each warp copies one chunk of a tile's keys, values or both.
  static constexpr int kChunks = kKeys / kChunk;
  static_assert(kWarps % kChunks == 0);

  // Where this warp's chunk of a tile lies in the cache.
  __device__ __forceinline__ int32_t PlaceOf(int tile) const {
    const int key = first_key_ + tile * kKeys + warp_ % kChunks * kChunk;
    return key < end_key_ ? attention::CacheChunk(table_, key / kChunk, a_.kv_heads, kv_head_,
                                                  a_.block_size / kChunk)
                          : 0;
  }

  __device__ __forceinline__ void StartCopy(int tile) {
    const int chunk = warp_ % kChunks;
    const int num_valid = end_key_ - (first_key_ + tile * kKeys + chunk * kChunk);
    const int64_t offset = int64_t{place_} * (kChunk * kDim);
    const uint32_t to = tiles_ + tile % 2 * (2 * S::kTileBytes) + chunk * (kChunk * Rows::kStride);
#pragma unroll
    for (int job = 0; job < 2 * kChunks / kWarps; ++job) {
      const bool values = (warp_ + job * kWarps) / kChunks == 1;
      attention::CopyChunk<kDim>(to + (values ? S::kTileBytes : 0),
                                 static_cast<const T*>(values ? a_.v_cache : a_.k_cache) + offset,
                                 num_valid, lane_);
    }
    attention::CommitCopies();
    place_ = PlaceOf(tile + 1);
  }

  __device__ __forceinline__ void MultiplyKeys(uint32_t keys,
                                               float (&scores)[kTiles][kKeys / 8][4]) const {
    const int key_row = lane_ % 8 + lane_ / 16 * 8;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t q[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        attention::LoadMatrices(
            q[t], queries_ +
                      Rows::Offset(warp_ * S::kWarpRows + t * 16 + lane_ % 16, 2 * k + lane_ / 16));
      }
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t b[4];
        attention::LoadMatrices(b, keys + Rows::Offset(n * 16 + key_row, 2 * k + lane_ / 8 % 2));
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          attention::MultiplyAdd<T>(scores[t][2 * n], q[t], b[0], b[1]);
          attention::MultiplyAdd<T>(scores[t][2 * n + 1], q[t], b[2], b[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void Mask(int first_key, float (&scores)[kTiles][kKeys / 8][4]) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = work_.first_row + warp_ * S::kWarpRows + t * 16 + half * 8 + lane_ / 4;
        const int position = context_ + row / group_;
        const int begin = a_.window > 0 ? position - a_.window + 1 : 0;
#pragma unroll
        for (int i = 0; i < kKeys / 8 * 2; ++i) {
          const int key = first_key + i / 2 * 8 + lane_ % 4 * 2 + i % 2;
          float& score = scores[t][i / 2][2 * half + i % 2];
          score = key >= begin && key <= position ? score : -INFINITY;
        }
      }
    }
  }

  __device__ __forceinline__ void RaiseMaximum(const float (&scores)[kTiles][kKeys / 8][4]) {
    const float scale = a_.scale * kLog2E;
    float highest[kTiles][2];
    bool raise = false;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float high = scores[t][0][2 * half];
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
          high = fmaxf(high, fmaxf(scores[t][n][2 * half], scores[t][n][2 * half + 1]));
        }
        highest[t][half] = high * scale;
        raise |= highest[t][half] > maximum_[t][half] + attention::kMaximumSlack;
      }
    }
    if (!__any_sync(kAllLanes, raise)) {
      return;
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float high = highest[t][half];
        high = fmaxf(high, __shfl_xor_sync(kAllLanes, high, 1));
        high = fmaxf(high, __shfl_xor_sync(kAllLanes, high, 2));
        high = fmaxf(high, maximum_[t][half]);
        const float keep = attention::Exp2(maximum_[t][half] - high);
        maximum_[t][half] = high;
        sum_[t][half] *= keep;
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d) {
          out_[t][d][2 * half] *= keep;
          out_[t][d][2 * half + 1] *= keep;
        }
      }
    }
  }

  __device__ __forceinline__ void Exponentiate(float (&scores)[kTiles][kKeys / 8][4]) {
    const float scale = a_.scale * kLog2E;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& score = scores[t][n][i];
          score = attention::Exp2(fmaf(score, scale, -maximum_[t][i / 2]));
          sum_[t][i / 2] += score;
        }
      }
    }
  }

  __device__ __forceinline__ void MultiplyValues(uint32_t values,
                                                 const float (&scores)[kTiles][kKeys / 8][4]) {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      uint32_t p[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = &scores[t][2 * k + i / 2][i % 2 * 2];
          p[t][i] = attention::Pack<T>(pair[0], pair[1]);
        }
      }
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) {
        uint32_t b[4];
        attention::LoadTransposed(b,
                                  values + Rows::Offset(k * 16 + lane_ % 16, 2 * d + lane_ / 16));
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          attention::MultiplyAdd<T>(out_[t][2 * d], p[t], b[0], b[1]);
          attention::MultiplyAdd<T>(out_[t][2 * d + 1], p[t], b[2], b[3]);
        }
      }
    }
  }

  const AttentionArguments& a_;
  const Work& work_;
  const int kv_head_;
  const int group_;
  const int context_;  // keys before the sequence's rows
  const int32_t* table_;
  unsigned char* shared_;
  const uint32_t queries_;
  const uint32_t tiles_;  // [2][keys, values][kKeys] rows
  const int warp_ = threadIdx.x / 32;
  const int lane_ = threadIdx.x % 32;
  int first_key_;      // that some row sees, rounded down to a chunk
  int end_key_;        // after the last that some row sees
  int all_see_begin_;  // rows all see [all_see_begin, all_see_end)
  int all_see_end_;
  int32_t place_ = 0;
  // Of rows lane / 4 and lane / 4 + 8 of each tile; sums are over the lane's own keys until Store.
  float maximum_[kTiles][2];
  float sum_[kTiles][2] = {};
  float out_[kTiles][kDim / 8][4] = {};
};

// Grid: [kv heads, tiles of rows]; the last tiles of a sequence, which see most keys, begin first.
template <typename T, int kDim, int kWarpTiles>
__global__ void __launch_bounds__(kThreads)
    PrefillKernel(const __grid_constant__ AttentionArguments a) {
  extern __shared__ __align__(128) unsigned char shared[];
  AllowNext();
  WaitForPrevious();
  const Work work =
      FindWork(a, static_cast<int>(gridDim.y - 1 - blockIdx.y), Shape<kDim, kWarpTiles>::kRows);
  if (work.sequence < 0) {
    return;
  }
  BlockAttention<T, kDim, kWarpTiles> block(a, work, blockIdx.x, shared);
  block.Run();
  block.Store();
}

template <typename T, int kDim, int kWarpTiles>
cudaError_t LaunchTiles(const AttentionArguments& a, int64_t rows, cudaStream_t stream) {
  using S = Shape<kDim, kWarpTiles>;
  const auto kernel = PrefillKernel<T, kDim, kWarpTiles>;
  if (const cudaError_t error = cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes);
      error != cudaSuccess) {
    return error;
  }
  // Each sequence may end with a tile that is not full.
  const auto tiles = static_cast<unsigned>(rows / S::kRows + a.num_sequences);
  return LaunchOverlapped(kernel, dim3(a.kv_heads, tiles), kThreads, S::kSharedBytes, stream, a);
}

// Below this many full tiles, halves of them balance the multiprocessors better than they cost in
// reuse: three for each of the about 130 of the chips that this is tuned for.
constexpr int64_t kFewTiles = 384;

template <typename T, int kDim>
cudaError_t Launch(const AttentionArguments& a, int32_t num_tokens, cudaStream_t stream) {
  constexpr int kMax = MaxWarpTiles(kDim);
  const int64_t rows = int64_t{num_tokens} * (a.num_heads / a.kv_heads);
  return rows * a.kv_heads < kFewTiles * Shape<kDim, kMax>::kRows
             ? LaunchTiles<T, kDim, 1>(a, rows, stream)
             : LaunchTiles<T, kDim, kMax>(a, rows, stream);
}

template <typename T>
cudaError_t LaunchTyped(const AttentionArguments& a, int32_t num_tokens, cudaStream_t stream) {
  switch (a.block_size % kChunk == 0 ? a.head_dim : 0) {
    case 64:
      return Launch<T, 64>(a, num_tokens, stream);
    case 80:
      return Launch<T, 80>(a, num_tokens, stream);
    case 96:
      return Launch<T, 96>(a, num_tokens, stream);
    case 128:
      return Launch<T, 128>(a, num_tokens, stream);
    case 256:
      return Launch<T, 256>(a, num_tokens, stream);
    default:
      return PlainAttention(a, num_tokens, stream);
  }
}

}  // namespace

cudaError_t PrefillAttention(const AttentionArguments& arguments, int32_t num_tokens,
                             cudaStream_t stream) {
  return arguments.type == GpuType::kFp16
             ? LaunchTyped<__half>(arguments, num_tokens, stream)
             : LaunchTyped<__nv_bfloat16>(arguments, num_tokens, stream);
}

}  // namespace ferrite

// One warp's part of decoding: its own ring of tiles on the way to shared memory, and the running
// softmax over them. Keys are the rows of the products and query heads the columns, so that eight
// heads fill a product exactly.
#pragma once

#include "cuda/kernels/attention_parts.cuh"

namespace ferrite::attention {

inline constexpr int kHeads = 8;  // query heads a block
inline constexpr int kStages = 3;
inline constexpr float kLog2E = 1.4426950408889634f;

// Warps a block. Where every block has a multiprocessor to itself, what counts is how soon the
// block is done: `wide` ones take as many as its shared memory holds rings for.
constexpr int WarpsFor(int dim, bool wide) {
  const int warps = dim > 128 ? 2 : 4;
  return !wide ? warps : dim > 64 ? 2 * warps : 4 * warps;
}
// Merging splits costs more than two chunks a warp, and never pays below this.
inline constexpr int kLeastChunksPerSplit = 16;
constexpr int MinChunksPerSplit(int warps) {
  return 2 * warps > kLeastChunksPerSplit ? 2 * warps : kLeastChunksPerSplit;
}

// The chunks of kChunk keys that a split takes: whole [first, end), empty where there is no work.
struct ChunkRange {
  int first;
  int end;
  int num_splits;  // that have work
};

__device__ __forceinline__ ChunkRange RangeOfSplit(int kv_len, int window, int num_splits,
                                                   int split, int min_chunks) {
  const int begin = window > 0 ? max(0, kv_len - window) / kChunk : 0;
  const int end = (kv_len + kChunk - 1) / kChunk;
  const int each = max((end - begin + num_splits - 1) / num_splits, min_chunks);
  const int first = min(begin + split * each, end);
  return {first, min(first + each, end), (end - begin + each - 1) / each};
}

// One warp's part of the work: chunks first, first + kWarps, ... of the sequence. kPrepares: the
// newest key and value are not in the cache yet, but in qkv.
template <typename T, int kHeadDim, bool kPrepares, int kBlockWarps>
class WarpAttention {
 public:
  static constexpr int kDim = kHeadDim;
  static constexpr int kWarps = kBlockWarps;
  static constexpr int kMinChunks = MinChunksPerSplit(kWarps);
  using Rows = TileRows<kDim>;
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

  // What the newest key, and the query, are turned by; nothing that the kernel ahead writes.
  __device__ __forceinline__ void LoadTurns() {
    const float* cosines = a_.preparation.cosines + int64_t{kv_len_ - 1} * (kDim / 2);
    const float* sines = a_.preparation.sines + int64_t{kv_len_ - 1} * (kDim / 2);
#pragma unroll
    for (int k = 0; k < kDim / 32; ++k) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int i = DimensionOf(k, part);
        cosines_[k][part] = *reinterpret_cast<const float2*>(cosines + i);
        sines_[k][part] = *reinterpret_cast<const float2*>(sines + i);
      }
    }
    if (newest_ >= 0) {
      const float* norm = a_.preparation.k_norm;
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        const int i = min(j * 32 + lane_, kDim / 2 - 1);
        key_turns_[j] = make_float2(cosines[i], sines[i]);
        key_norms_[j] =
            norm == nullptr ? make_float2(0, 0) : make_float2(norm[i], norm[kDim / 2 + i]);
      }
      newest_place_ =
          CacheChunk(table_, (kv_len_ - 1) / kChunk, a_.kv_heads, kv_head_, a_.block_size / kChunk);
    }
    if (a_.preparation.q_norm != nullptr && lane_ * 32 < kDim) {  // 128 bytes each
      asm volatile("prefetch.global.L2 [%0];" ::"l"(a_.preparation.q_norm + lane_ * 32));
    }
  }

  // Of raw heads: norm and rotation of the query, whose pairs (i, i + kDim / 2) a lane has both of.
  __device__ __forceinline__ void PrepareQuery(const float* q, int num_heads) {
    float2 pairs[kDim / 32][2][2];  // [.][part][low or high half]
    float squares = 0;
#pragma unroll
    for (int k = 0; k < kDim / 32; ++k) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float* from = q + lane_ / 4 * kDim + half * (kDim / 2) + DimensionOf(k, part);
          const float2 x = lane_ / 4 < num_heads ? __ldcg(reinterpret_cast<const float2*>(from))
                                                 : make_float2(0, 0);
          squares += x.x * x.x + x.y * x.y;
          pairs[k][part][half] = x;
        }
      }
    }
    const float* norm = a_.preparation.q_norm;
    float scale = 1;
    if (norm != nullptr) {
      squares += __shfl_xor_sync(kAllLanes, squares, 1);
      squares += __shfl_xor_sync(kAllLanes, squares, 2);
      scale = rsqrtf(squares / static_cast<float>(kDim) + a_.preparation.epsilon);
    }
#pragma unroll
    for (int k = 0; k < kDim / 32; ++k) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        float2 low = pairs[k][part][0];
        float2 high = pairs[k][part][1];
        if (norm != nullptr) {
          const float* of_low = norm + DimensionOf(k, part);
          const float2 low_norm = __ldg(reinterpret_cast<const float2*>(of_low));
          const float2 high_norm = __ldg(reinterpret_cast<const float2*>(of_low + kDim / 2));
          low = make_float2(low.x * scale * low_norm.x, low.y * scale * low_norm.y);
          high = make_float2(high.x * scale * high_norm.x, high.y * scale * high_norm.y);
        }
        const float2 cosine = cosines_[k][part];
        const float2 sine = sines_[k][part];
        q_[k][part] =
            Pack<T>(low.x * cosine.x - high.x * sine.x, low.y * cosine.y - high.y * sine.y);
        q_[k + kDim / 32][part] =
            Pack<T>(high.x * cosine.x + low.x * sine.x, high.y * cosine.y + low.y * sine.y);
      }
    }
  }

  // Of the warp that has the newest key: reads that and its value from the token's raw heads.
  __device__ __forceinline__ void LoadNewest(const float* k, const float* v) {
    if (newest_ >= 0) {
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        const int i = j * 32 + lane_;
        const bool valid = i < kDim / 2;
        key_[j][0] = valid ? __ldcg(k + i) : 0;
        key_[j][1] = valid ? __ldcg(k + i + kDim / 2) : 0;
        const float2 value =
            valid ? __ldcg(reinterpret_cast<const float2*>(v) + i) : make_float2(0, 0);
        value_[j] = Pack<T>(value.x, value.y);
      }
    }
  }

  // Norm and rotation of the newest key, and its write, and its value's, to the cache.
  __device__ __forceinline__ void PrepareNewest(bool write) {
    if (newest_ < 0) {
      return;
    }
    const float* norm = a_.preparation.k_norm;
    float scale = 1;
    if (norm != nullptr) {
      float squares = 0;
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        squares += key_[j][0] * key_[j][0] + key_[j][1] * key_[j][1];
      }
#pragma unroll
      for (int mask = 1; mask < 32; mask *= 2) {
        squares += __shfl_xor_sync(kAllLanes, squares, mask);
      }
      scale = rsqrtf(squares / static_cast<float>(kDim) + a_.preparation.epsilon);
    }
    const int64_t row = (int64_t{newest_place_} * kChunk + (kv_len_ - 1) % kChunk) * kDim;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int i = j * 32 + lane_;
      if (i < kDim / 2) {
        float low = key_[j][0];
        float high = key_[j][1];
        if (norm != nullptr) {
          low *= scale * key_norms_[j].x;
          high *= scale * key_norms_[j].y;
        }
        const float cosine = key_turns_[j].x;
        const float sine = key_turns_[j].y;
        key_[j][0] = low * cosine - high * sine;
        key_[j][1] = high * cosine + low * sine;
        if (write) {
          T* to = static_cast<T*>(a_.k_cache) + row + i;
          to[0] = FromFloat<T>(key_[j][0]);
          to[kDim / 2] = FromFloat<T>(key_[j][1]);
          reinterpret_cast<uint32_t*>(static_cast<T*>(a_.v_cache) + row)[i] = value_[j];
        }
      }
    }
  }

  // Starts copying, all but the sequence's last chunk if its newest key is still to come there.
  __device__ __forceinline__ void Start(int first, int end) {
    first_ = first;
    count_ = max(0, (end - first + kWarps - 1) / kWarps);
    const int last = count_ - 1;
    newest_ = first_ + last * kWarps == (kv_len_ - 1) / kChunk ? last : -1;
    places_ = PlaceOf(lane_);
    next_places_ = PlaceOf(32 + lane_);
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      if (kPrepares || i != newest_) {
        Copy(i, i);
      }
      CommitCopies();
    }
  }

  __device__ __forceinline__ void Run() {
    if (!kPrepares && newest_ >= 0 && newest_ < kStages) {
      Copy(newest_, newest_);
      CommitCopies();
    }
    int stage = 0;
    for (int i = 0; i < count_; ++i) {
      if (i + 1 < count_) {
        WaitForCopies<kStages - 1>();
      } else {  // also the group that may have come late
        WaitForCopies<0>();
      }
      __syncwarp();
      if (kPrepares && i == newest_) {
        PutNewest(shared_ + stage * kStageBytes);
        __syncwarp();
      }
      Attend(shared_ + stage * kStageBytes, (first_ + i * kWarps) * kChunk);
      __syncwarp();
      if ((i + kStages) % 32 == 0) {  // lanes read the places of 32 tiles at once, well ahead
        places_ = next_places_;
        next_places_ = PlaceOf(i + kStages + 32 + lane_);
      }
      Copy(i + kStages, stage);
      CommitCopies();
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    WaitForCopies<0>();
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) {
      sum_[0] += __shfl_xor_sync(kAllLanes, sum_[0], mask);
      sum_[1] += __shfl_xor_sync(kAllLanes, sum_[1], mask);
    }
  }

  // weighted [kHeads, kStride] and scales [kHeads] of this warp, in shared memory.
  static constexpr int kOutStride = kDim + 4;
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
  // The first of the two dimensions of q_[k][part] in this lane.
  __device__ __forceinline__ int DimensionOf(int k, int part) const {
    return k * 16 + part * 8 + lane_ % 4 * 2;
  }

  // Where this warp's i-th chunk lies in the cache.
  __device__ __forceinline__ int32_t PlaceOf(int i) const {
    return i < count_ ? CacheChunk(table_, first_ + i * kWarps, a_.kv_heads, kv_head_,
                                   a_.block_size / kChunk)
                      : 0;
  }

  __device__ __forceinline__ void Copy(int i, int stage) {
    const int32_t place = __shfl_sync(kAllLanes, places_, i % 32);
    if (i < count_) {
      const int64_t offset = int64_t{place} * (kChunk * kDim);
      const int num_valid = kv_len_ - (first_ + i * kWarps) * kChunk - (kPrepares ? 1 : 0);
      const uint32_t to = shared_ + stage * kStageBytes;
      CopyChunk<kDim>(to, static_cast<const T*>(a_.k_cache) + offset, num_valid, lane_);
      CopyChunk<kDim>(to + kTileBytes, static_cast<const T*>(a_.v_cache) + offset, num_valid,
                      lane_);
    }
  }

  // Puts the newest key and value into their row of a tile, where zeros were copied.
  __device__ __forceinline__ void PutNewest(uint32_t tile) const {
    const int row = (kv_len_ - 1) % kChunk;
    const auto put = [&](int i, float value) {
      const T narrow = FromFloat<T>(value);
      StoreShared(tile + Rows::Offset(row, i / 8) + i % 8 * 2,
                  reinterpret_cast<const uint16_t&>(narrow));
    };
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int i = j * 32 + lane_;
      if (i < kDim / 2) {
        put(i, key_[j][0]);
        put(i + kDim / 2, key_[j][1]);
        StoreShared(tile + kTileBytes + Rows::Offset(row, i / 4) + i % 4 * 4, value_[j]);
      }
    }
  }

  __device__ __forceinline__ void Attend(uint32_t tile, int first_key) {
    float even[4] = {};
    float odd[4] = {};  // two chains of products, for half the latency
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t keys[4];
      LoadMatrices(keys, tile + Rows::Offset(lane_ % 16, 2 * k + lane_ / 16));
      MultiplyAdd<T>(k % 2 == 0 ? even : odd, keys, q_[k][0], q_[k][1]);
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
      scores[i] = Exp2(scores[i] - maximum_[i % 2]);
      sum_[i % 2] += scores[i];
    }
    const uint32_t low = Transpose(Pack<T>(scores[0], scores[1]));
    const uint32_t high = Transpose(Pack<T>(scores[2], scores[3]));
    const int value_row = lane_ % 8 + lane_ / 16 * 8;
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      uint32_t values[4];
      LoadTransposed(values, tile + kTileBytes + Rows::Offset(value_row, 2 * d + lane_ / 8 % 2));
      MultiplyAdd<T>(out_[d], values, low, high);
    }
  }

  __device__ __forceinline__ void RaiseMaximum(const float (&scores)[4]) {
    float highest[2] = {fmaxf(scores[0], scores[2]), fmaxf(scores[1], scores[3])};
    if (!__any_sync(kAllLanes, highest[0] > maximum_[0] + kMaximumSlack ||
                                   highest[1] > maximum_[1] + kMaximumSlack)) {
      return;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) {
        highest[h] = fmaxf(highest[h], __shfl_xor_sync(kAllLanes, highest[h], mask));
      }
      const float maximum = fmaxf(maximum_[h], highest[h]);
      const float keep = Exp2(maximum_[h] - maximum);
      maximum_[h] = maximum;
      sum_[h] *= keep;
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) {
        out_[d][h] *= keep;
        out_[d][h + 2] *= keep;
      }
    }
  }

  static constexpr int kPairs = (kDim / 2 + 31) / 32;  // of the newest key, a lane

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
  // Only if kPrepares: by the dimensions of q_'s first half, and by pairs of dimensions.
  float2 cosines_[kDim / 32][2];
  float2 sines_[kDim / 32][2];
  float2 key_turns_[kPairs];  // cosine and sine of the newest key's pairs
  float2 key_norms_[kPairs];
  int32_t newest_place_ = 0;
  float key_[kPairs][2];
  uint32_t value_[kPairs];
  // Of query heads 2 (lane % 4) and the one after; sums are over the lane's own keys until the end.
  float maximum_[2] = {kNoMaximum, kNoMaximum};
  float sum_[2] = {};
  float out_[kDim / 16][4] = {};
};

}  // namespace ferrite::attention

// A block's attention of many rows, on tensor cores. Four warps share a tile of rows, a row being a
// (token, query head) of one kv head in that order, so that grouped heads share keys and values and
// short chunks still fill tiles; two tiles of keys and values take turns in shared memory.
//
// It comes in two kinds. The usual one lets rows of a warp share decisions, and tiles of keys begin
// where the block's first row begins to see. In the fixed one nothing that a row meets depends on
// its neighbours: tiles and segments of keys lie at fixed positions, and a row's segments are
// folded into its result in their order, whichever blocks computed them. So its result is the same
// in every bit however a prompt is cut and whatever else is in the batch.
#pragma once

#include <type_traits>

#include "cuda/kernels/attention_parts.cuh"
#include "cuda/kernels/prefill_work.cuh"

namespace ferrite::attention {

inline constexpr float kLog2E = 1.4426950408889634f;
// Of the fixed kind: keys whose softmax is worked out for itself.
inline constexpr int kSegmentKeys = 256;

// What of a row two softmaxes over different keys keep when they become one.
struct Fold {
  float maximum;
  float keep;  // of the sums so far
  float add;   // of the new ones
  bool any;    // whether the new one has any key at all

  __device__ __forceinline__ Fold(float so_far, float next)
      : maximum(fmaxf(so_far, next)),
        keep(Exp2(so_far - maximum)),
        add(Exp2(next - maximum)),
        any(next != kNoMaximum) {}

  // Rounded twice, wherever it is compiled into.
  __device__ __forceinline__ float Of(float so_far, float next) const {
    return any ? __fmaf_rn(next, add, __fmul_rn(so_far, keep)) : so_far;
  }
};

enum class Rounding {
  kShared,    // rows share decisions
  kFixed,     // segments are folded as they end
  kSegments,  // as kFixed, but each segment's outcome is stored, for somebody else to fold
};

// One block's attention. All of it is registers once inlined.
template <typename T, int kDim, int kWarpTiles, Rounding kRounding = Rounding::kShared>
class BlockAttention {
 public:
  using S = Shape<kDim, kWarpTiles>;
  using Rows = typename S::Rows;
  static constexpr int kTiles = S::kWarpTiles;
  static constexpr int kKeys = S::kKeys;
  static_assert(kSegmentKeys % kKeys == 0);

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
        queries_(SharedAddress(shared)),
        tiles_(queries_ + S::kQueryBytes) {
    const int first_token = work.first_row / group_;
    const int last_token = (min(work.first_row + S::kRows, work.num_rows) - 1) / group_;
    end_key_ = context_ + last_token + 1;
    all_see_end_ = context_ + first_token + 1;
    constexpr int kUnit = kRounding == Rounding::kShared ? kChunk : kKeys;
    first_seen_ = a_.window > 0 ? max(0, all_see_end_ - a_.window) / kChunk * kChunk : 0;
    first_key_ = first_seen_ / kUnit * kUnit;
    all_see_begin_ = a_.window > 0 ? end_key_ - a_.window : 0;
    Forget();
  }

  __device__ __forceinline__ void Run() {
    LoadQueries();
    RunTiles(0, (end_key_ - first_key_ + kKeys - 1) / kKeys);
  }

  // The segments of which some row sees keys.
  __device__ __forceinline__ int FirstSegment() const { return first_key_ / kSegmentKeys; }
  __device__ __forceinline__ int LastSegment() const { return (end_key_ - 1) / kSegmentKeys; }

  // One segment instead of all; StorePartial then takes its outcome.
  __device__ __forceinline__ void RunSegment(int segment) {
    const int begin = max(segment * kSegmentKeys, first_key_);
    const int end = min((segment + 1) * kSegmentKeys, end_key_);
    RunTiles((begin - first_key_) / kKeys, (end - first_key_ + kKeys - 1) / kKeys);
  }

  __device__ __forceinline__ void LoadQueries() {
    const T* qkv = static_cast<const T*>(a_.qkv);
    const int64_t token_stride = int64_t{a_.num_heads + 2 * a_.kv_heads} * kDim;
    for (int i = threadIdx.x; i < S::kRows * Rows::kVectors; i += kPrefillThreads) {
      const int r = i / Rows::kVectors;
      const int vector = i % Rows::kVectors;
      const int row = min(work_.first_row + r, work_.num_rows - 1);
      const T* from = qkv + (work_.first_token + row / group_) * token_stride +
                      (kv_head_ * group_ + row % group_) * kDim + vector * 8;
      CopyAsync(queries_ + Rows::Offset(r, vector), from, work_.first_row + r < work_.num_rows);
    }
  }

  // Of a row: kDim sums, their maximum, and the sum of weights.
  static constexpr int kPartial = kDim + 2;

  // partials[row] of the sequence's kv head = the segment's outcome, which is forgotten.
  __device__ __forceinline__ void StorePartial(float* partials) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = LaneSum(sum_[t][half]);
        const int row = work_.first_row + warp_ * S::kWarpRows + t * 16 + half * 8 + lane_ / 4;
        if (row >= work_.num_rows) {
          continue;
        }
        float* to = partials + row * kPartial;
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d) {
          *reinterpret_cast<float2*>(to + d * 8 + lane_ % 4 * 2) =
              make_float2(out_[t][d][2 * half], out_[t][d][2 * half + 1]);
        }
        if (lane_ % 4 == 0) {
          *reinterpret_cast<float2*>(to + kDim) = make_float2(maximum_[t][half], sum);
        }
      }
    }
    Forget();
    __syncthreads();  // nobody reads the last tiles any longer
  }

  // The rows' results; of kSegments, where there was only one segment.
  __device__ __forceinline__ void Store() {
    // Through this warp's queries, which no other warp reads.
    unsigned char* mine = shared_ + warp_ * S::kWarpRows * Rows::kStride;
    __syncwarp();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float inverse = 1.0f / RowSum(t, half);
        const int row = t * 16 + half * 8 + lane_ / 4;
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d) {
          *reinterpret_cast<uint32_t*>(mine + Rows::Offset(row, d) + lane_ % 4 * 4) =
              Pack<T>(RowValue(t, d, 2 * half) * inverse, RowValue(t, d, 2 * half + 1) * inverse);
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
  static constexpr bool kFolds = kRounding == Rounding::kFixed;

  // Of the segments before, at first none.
  struct Totals {
    float maximum[kTiles][2];
    float sum[kTiles][2] = {};
    float out[kTiles][kDim / 8][4] = {};

    __device__ __forceinline__ Totals() {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        maximum[t][0] = maximum[t][1] = kNoMaximum;
      }
    }
  };
  struct NoTotals {};

  __device__ __forceinline__ void FoldSegment() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Fold fold(total_.maximum[t][half], maximum_[t][half]);
        total_.maximum[t][half] = fold.maximum;
        total_.sum[t][half] = fold.Of(total_.sum[t][half], LaneSum(sum_[t][half]));
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            total_.out[t][d][i] = fold.Of(total_.out[t][d][i], out_[t][d][i]);
          }
        }
      }
    }
    Forget();
  }

  __device__ __forceinline__ float RowSum(int t, int half) const {
    if constexpr (kFolds) {
      return total_.sum[t][half];
    } else {
      return LaneSum(sum_[t][half]);
    }
  }
  __device__ __forceinline__ float RowValue(int t, int d, int i) const {
    if constexpr (kFolds) {
      return total_.out[t][d][i];
    } else {
      return out_[t][d][i];
    }
  }

  // No key has been seen.
  __device__ __forceinline__ void Forget() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      maximum_[t][0] = maximum_[t][1] = kNoMaximum;
      sum_[t][0] = sum_[t][1] = 0;
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d) {
        out_[t][d][0] = out_[t][d][1] = out_[t][d][2] = out_[t][d][3] = 0;
      }
    }
  }

  // Of the four lanes that share a row; the same bits on each.
  static __device__ __forceinline__ float LaneSum(float value) {
    value += __shfl_xor_sync(kAllLanes, value, 1);
    return value + __shfl_xor_sync(kAllLanes, value, 2);
  }
  static __device__ __forceinline__ float LaneMaximum(float value) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
    return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
  }

  __device__ __forceinline__ void RunTiles(int begin, int end) {
    place_ = PlaceOf(begin);
    StartCopy(begin);
    for (int tile = begin; tile < end; ++tile) {
      WaitForCopies<0>();
      __syncthreads();  // the tile is there, and everybody is done with the one before it
      if (tile + 1 < end) {
        StartCopy(tile + 1);
      }
      if (idle_) {
        continue;
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
      if constexpr (kFolds) {
        if (tile + 1 == end || (first_key + kKeys) % kSegmentKeys == 0) {
          FoldSegment();
        }
      }
    }
  }

  // Each warp copies one chunk of a tile's keys, values or both.
  static constexpr int kChunks = kKeys / kChunk;
  static_assert(kPrefillWarps % kChunks == 0);

  // How many of a chunk's keys there are to copy; those below every window may be gone.
  __device__ __forceinline__ int NumValid(int key) const {
    if constexpr (kRounding != Rounding::kShared) {
      return key < first_seen_ ? 0 : end_key_ - key;
    } else {
      return end_key_ - key;
    }
  }

  // Where this warp's chunk of a tile lies in the cache.
  __device__ __forceinline__ int32_t PlaceOf(int tile) const {
    const int key = first_key_ + tile * kKeys + warp_ % kChunks * kChunk;
    return NumValid(key) > 0
               ? CacheChunk(table_, key / kChunk, a_.kv_heads, kv_head_, a_.block_size / kChunk)
               : 0;
  }

  __device__ __forceinline__ void StartCopy(int tile) {
    const int chunk = warp_ % kChunks;
    const int num_valid = NumValid(first_key_ + tile * kKeys + chunk * kChunk);
    const int64_t offset = int64_t{place_} * (kChunk * kDim);
    const uint32_t to = tiles_ + tile % 2 * (2 * S::kTileBytes) + chunk * (kChunk * Rows::kStride);
#pragma unroll
    for (int job = 0; job < 2 * kChunks / kPrefillWarps; ++job) {
      const bool values = (warp_ + job * kPrefillWarps) / kChunks == 1;
      CopyChunk<kDim>(to + (values ? S::kTileBytes : 0),
                      static_cast<const T*>(values ? a_.v_cache : a_.k_cache) + offset, num_valid,
                      lane_);
    }
    CommitCopies();
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
        LoadMatrices(q[t], queries_ + Rows::Offset(warp_ * S::kWarpRows + t * 16 + lane_ % 16,
                                                   2 * k + lane_ / 16));
      }
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t b[4];
        LoadMatrices(b, keys + Rows::Offset(n * 16 + key_row, 2 * k + lane_ / 8 % 2));
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          MultiplyAdd<T>(scores[t][2 * n], q[t], b[0], b[1]);
          MultiplyAdd<T>(scores[t][2 * n + 1], q[t], b[2], b[3]);
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
        if constexpr (kRounding != Rounding::kShared) {
          highest[t][half] = LaneMaximum(highest[t][half]);  // each row for itself
        }
        raise |= highest[t][half] > maximum_[t][half] + kMaximumSlack;
      }
    }
    if (!__any_sync(kAllLanes, raise)) {
      return;
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float high = maximum_[t][half];
        if constexpr (kRounding == Rounding::kShared) {
          high = fmaxf(LaneMaximum(highest[t][half]), high);
        } else if (highest[t][half] > high + kMaximumSlack) {
          high = highest[t][half];
        }
        const float keep = Exp2(maximum_[t][half] - high);
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
          score = Exp2(fmaf(score, scale, -maximum_[t][i / 2]));
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
          p[t][i] = Pack<T>(pair[0], pair[1]);
        }
      }
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) {
        uint32_t b[4];
        LoadTransposed(b, values + Rows::Offset(k * 16 + lane_ % 16, 2 * d + lane_ / 16));
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          MultiplyAdd<T>(out_[t][2 * d], p[t], b[0], b[1]);
          MultiplyAdd<T>(out_[t][2 * d + 1], p[t], b[2], b[3]);
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
  // This warp has no rows, and only copies.
  const bool idle_ = work_.first_row + warp_ * S::kWarpRows >= work_.num_rows;
  int first_seen_;     // the first key that some row sees, rounded down to a chunk
  int first_key_;      // where tiles begin
  int end_key_;        // after the last that some row sees
  int all_see_begin_;  // rows all see [all_see_begin, all_see_end)
  int all_see_end_;
  int32_t place_ = 0;
  // Of rows lane / 4 and lane / 4 + 8 of each tile; sums are over the lane's own keys.
  float maximum_[kTiles][2];
  float sum_[kTiles][2];
  float out_[kTiles][kDim / 8][4];
  std::conditional_t<kFolds, Totals, NoTotals> total_;
};

}  // namespace ferrite::attention

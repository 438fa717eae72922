// Running sums over a row's bins, and what the block that works on them shares.
#pragma once

#include "cuda/kernels/sample_parts.cuh"

namespace ferrite::sampling {

inline constexpr int kDrawThreads = 512;
inline constexpr int kDrawWarps = kDrawThreads / kWarpSize;
inline constexpr int kOwnBins = kBins / kDrawThreads;  // of each thread, side by side
inline constexpr uint32_t kMaxMembers = 256;

// Tokens whose keys lie in [low_key, high_key], and all those before them.
struct Interval {
  uint32_t low_key;
  uint32_t high_key;
  Weight weight_before;
  Weight weight;
  uint32_t count_before;
  uint32_t count;
};

// What a running sum must reach: `count` tokens if that is not 0, else `weight`, at least 1.
struct Goal {
  uint32_t count;
  Weight weight;

  // How many of the interval's tokens, all of one weight, it takes.
  __device__ uint32_t MembersNeeded(const Interval& at) const {
    if (count > 0) {
      return count - at.count_before;
    }
    const Weight each = at.weight / at.count;
    return static_cast<uint32_t>((weight - at.weight_before + each - 1) / each);
  }
};

// What a weight can be, for all that is known.
struct Range {
  Weight least;
  Weight most;

  __device__ Range Min(const Range& other) const {
    return {min(least, other.least), min(most, other.most)};
  }
};

// A listed token's bin and id in one word; an id takes kIdBits.
inline constexpr int kIdBits = 18;
static_assert(kIdBits + kBinBits <= 32);
__device__ __forceinline__ uint32_t PackBin(uint32_t bin, int32_t id) {
  return bin << kIdBits | static_cast<uint32_t>(id);
}
__device__ __forceinline__ uint32_t BinOfPacked(uint32_t packed) { return packed >> kIdBits; }
__device__ __forceinline__ int32_t IdOfPacked(uint32_t packed) {
  return static_cast<int32_t>(packed & ((1u << kIdBits) - 1));
}

// A bin's tokens, in any order.
struct Members {
  uint32_t count;              // too many are counted but not kept
  Weight tokens[kMaxMembers];  // Pack: the greater, the earlier
  Weight weights[kMaxMembers];
};

// One block works on one row.
struct DrawShared {
  union {  // by turns
    Histogram histogram;
    Members members;
  };
  // Tokens of the bins in question, in any order; too many are counted but not listed.
  uint32_t num_listed;
  float logits[kMaxListed];
  uint32_t ids[kMaxListed];  // PackBin
  Weight warp_weights[kDrawWarps];
  uint32_t warp_counts[kDrawWarps];
  uint32_t bin;
  Interval at;
  uint32_t wanted[kBins / 32];  // a bit for each bin whose tokens are listed for all questions
  uint32_t first_wanted;
  uint32_t last_wanted;
  Range range;
  uint32_t list_begin;
  bool is_last_block;
  Weight up_to;
  int32_t token;
};

// This thread's bins of a histogram, and the sums of all bins before them.
struct Bins {
  Weight weights[kOwnBins];
  uint32_t counts[kOwnBins];
  Weight weight_before;
  uint32_t count_before;
  Weight total_weight;  // these two start from what is given to Scan
  uint32_t total_count;

  __device__ static uint32_t First() { return kOwnBins * threadIdx.x; }

  __device__ static Bins Of(const Histogram& histogram) {
    Bins bins;
#pragma unroll
    for (int i = 0; i < kOwnBins; ++i) {
      bins.weights[i] = histogram.WeightAt(static_cast<int>(First()) + i);
      bins.counts[i] = histogram.counts[First() + i];
    }
    return bins;
  }

  __device__ static Bins Of(const RowState& state) {
    Bins bins;
#pragma unroll
    for (int i = 0; i < kOwnBins; ++i) {
      bins.weights[i] = state.weights[First() + i];
      bins.counts[i] = state.counts[First() + i];
    }
    return bins;
  }

  __device__ void Scan(Weight base_weight, uint32_t base_count, DrawShared& shared) {
    const int lane = threadIdx.x % kWarpSize;
    const int warp = threadIdx.x / kWarpSize;
    Weight own_weight = 0;
    uint32_t own_count = 0;
#pragma unroll
    for (int i = 0; i < kOwnBins; ++i) {
      own_weight += weights[i];
      own_count += counts[i];
    }
    Weight weight = own_weight;
    uint32_t count = own_count;
    InclusiveScan(weight, count, lane);
    if (lane == kWarpSize - 1) {
      shared.warp_weights[warp] = weight;
      shared.warp_counts[warp] = count;
    }
    __syncthreads();
    Weight warp_weight = lane < kDrawWarps ? shared.warp_weights[lane] : 0;
    uint32_t warp_count = lane < kDrawWarps ? shared.warp_counts[lane] : 0;
    const Weight own_warp_weight = warp_weight;
    const uint32_t own_warp_count = warp_count;
    InclusiveScan(warp_weight, warp_count, lane);
    total_weight = base_weight + __shfl_sync(kWholeWarp, warp_weight, kWarpSize - 1);
    total_count = base_count + __shfl_sync(kWholeWarp, warp_count, kWarpSize - 1);
    // Inclusive sums less the own are exclusive.
    weight_before = base_weight + weight - own_weight +
                    __shfl_sync(kWholeWarp, warp_weight - own_warp_weight, warp);
    count_before =
        base_count + count - own_count + __shfl_sync(kWholeWarp, warp_count - own_warp_count, warp);
    __syncthreads();
  }

  // Puts the bin in which the running sum reaches the goal into shared.bin, and its sums into
  // shared.at. There must be one.
  __device__ void Locate(const Goal& goal, DrawShared& shared) const {
    Interval at = {0, 0, weight_before, 0, count_before, 0};
#pragma unroll
    for (int i = 0; i < kOwnBins; ++i) {
      at.weight = weights[i];
      at.count = counts[i];
      const bool found =
          goal.count > 0
              ? at.count_before < goal.count && at.count_before + at.count >= goal.count
              : at.weight_before < goal.weight && at.weight_before + at.weight >= goal.weight;
      if (found) {
        shared.bin = First() + i;
        shared.at = at;
      }
      at.weight_before += at.weight;
      at.count_before += at.count;
    }
    __syncthreads();
  }

 private:
  __device__ static void InclusiveScan(Weight& weight, uint32_t& count, int lane) {
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const Weight weight_below = __shfl_up_sync(kWholeWarp, weight, offset);
      const uint32_t count_below = __shfl_up_sync(kWholeWarp, count, offset);
      if (lane >= offset) {
        weight += weight_below;
        count += count_below;
      }
    }
  }
};

// The lowest key for which `holds`, which is false up to somewhere and true from there to `high`.
// The whole warp works on it.
template <typename Predicate>
__device__ uint32_t FirstKey(uint32_t high, Predicate holds) {
  const uint32_t lane = threadIdx.x % kWarpSize;
  uint32_t low = 0;
  while (low < high) {
    const uint32_t step = (high - low) / kWarpSize + 1;
    const unsigned votes = __ballot_sync(kWholeWarp, holds(min(low + lane * step, high)));
    const int first = __ffs(votes) - 1;
    if (first < 0) {
      low += (kWarpSize - 1) * step + 1;
    } else if (first == 0) {
      high = low;
    } else {
      high = min(low + first * step, high);
      low += (first - 1) * step + 1;
    }
  }
  return low;
}

}  // namespace ferrite::sampling

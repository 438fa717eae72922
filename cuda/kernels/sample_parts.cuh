// Parts of the sampler: a row of logits, its order, its weights, and histograms of them.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/sample.h"

namespace ferrite::sampling {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kWholeWarp = ~0u;

// A token's weight, exp(-distance), in units of 2^-45: integers add up to the same in any order,
// and 2^18 of them fit. Beyond kMaxDistance weights round to zero; all of those together are less
// than a twentieth of the finest draw's step, so that none of them is ever drawn.
using Weight = unsigned long long;
inline constexpr double kUnit = 1.0 / (1ull << 45);
inline constexpr float kMaxDistance = 32.0f;

inline constexpr int kBinBits = 11;
inline constexpr int kBins = 1 << kBinBits;
inline constexpr float kBinsPerUnit = kBins / kMaxDistance;
inline constexpr int kMaxSplits = 64;
inline constexpr uint32_t kMaxListed = 2816;  // as shared memory allows

// A row's part of the workspace.
struct RowState {
  Weight weights[kBins];    // by distance, likeliest first
  uint32_t counts[kBins];   // tokens in each bin; zeros for a row without top_k
  Weight best[kMaxSplits];  // the likeliest of each part of the row: Pack
  uint32_t blocks_done;
  // Tokens of the bins that the draw may have to look into, in any order; too many are counted but
  // not listed.
  uint32_t num_listed;
  float listed_logits[kMaxListed];
  uint32_t listed_ids[kMaxListed];  // with their bins
};

// Unsigned integers in the order of the logits; both zeros are one, NaN is below -inf.
__device__ __forceinline__ uint32_t KeyOf(float logit) {
  if (isnan(logit)) {
    return 0;
  }
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float LogitOf(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key ^ 0x80000000u : ~key);
}

// Greater for the token that comes first: by logit, then the lower id.
__device__ __forceinline__ Weight Pack(float logit, int32_t id) {
  return Weight{KeyOf(logit)} << 32 | ~static_cast<uint32_t>(id);
}
__device__ __forceinline__ int32_t IdOf(Weight packed) {
  return static_cast<int32_t>(~static_cast<uint32_t>(packed));
}
__device__ __forceinline__ float LogitOf(Weight packed) {
  return LogitOf(static_cast<uint32_t>(packed >> 32));
}

// One row's logits and how they are to be read.
struct Row {
  const float* logits;
  int32_t vocab_size;
  const GpuSamplingParams* params;
  int32_t num_barred;
  float max_logit;

  __device__ Row(const SampleArguments& a, int32_t row)
      : logits(a.logits + int64_t{row} * a.vocab_size),
        vocab_size(a.vocab_size),
        params(a.params + a.row_slots[row]),
        num_barred(a.output_indices[row] < params->min_new_tokens ? params->num_end_tokens : 0),
        max_logit(0) {}

  __device__ bool Barred(int32_t id) const {
    for (int32_t i = 0; i < num_barred; ++i) {
      if (params->end_token_ids[i] == id) {
        return true;
      }
    }
    return false;
  }

  // How far below the likeliest, in units of the temperature. The host's arithmetic to the bit.
  __device__ float Distance(float logit) const { return (max_logit - logit) / params->temperature; }
};

// kBins if the distance is too great, or NaN.
__device__ __forceinline__ uint32_t BinOf(float distance) {
  return distance < kMaxDistance ? static_cast<uint32_t>(distance * kBinsPerUnit) : kBins;
}

__device__ __forceinline__ Weight WeightOf(float distance) {
  return __double2ull_rn(exp(-static_cast<double>(distance)) * (1 / kUnit));
}

// Calls visit(id, logit) for ids begin + index, + stride, ... while any thread's id is below `end`:
// all threads come along, those beyond the end with NaN.
// kBatch loads are in flight.
template <int kBatch, typename Visit>
__device__ __forceinline__ void ForEachLogit(const float* logits, int32_t begin, int32_t end,
                                             int32_t index, int32_t stride, Visit visit) {
  for (int32_t first = begin; first < end; first += kBatch * stride) {
    float values[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int32_t id = first + j * stride + index;
      values[j] = id < end ? logits[id] : nanf("");
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      visit(first + j * stride + index, values[j]);
    }
  }
}

// The same for the ids whose logits are in [low, high]: whole warps come along where one lane has
// such a logit, the other lanes with NaN.
template <typename Visit>
__device__ __forceinline__ void ForEachNear(const float* logits, int32_t begin, int32_t end,
                                            int32_t index, int32_t stride, float low, float high,
                                            Visit visit) {
  constexpr int kBatch = 8;
  for (int32_t first = begin; first < end; first += kBatch * stride) {
    unsigned near = 0;  // a bit for each
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int32_t id = first + j * stride + index;
      const float logit = id < end ? logits[id] : nanf("");
      near |= (logit >= low && logit <= high ? 1u : 0u) << j;
    }
    for (unsigned any = __reduce_or_sync(kWholeWarp, near); any != 0; any &= any - 1) {
      const int j = __ffs(any) - 1;
      const int32_t id = first + j * stride + index;
      visit(id, (near >> j & 1) != 0 ? logits[id] : nanf(""));
    }
  }
}

// In shared memory, where only 32-bit atomics are quick: sums in two halves.
struct Histogram {
  uint32_t low[kBins];
  uint32_t high[kBins];
  uint32_t counts[kBins];

  // The whole block.
  __device__ void Clear() {
    for (unsigned i = threadIdx.x; i < kBins; i += blockDim.x) {
      low[i] = 0;
      high[i] = 0;
      counts[i] = 0;
    }
    __syncthreads();
  }

  // The whole warp comes along, lanes with nothing to add with bin kBins. Where all add to one bin,
  // one adds for all: rows of equal logits would queue for one address.
  __device__ void Add(uint32_t bin, Weight weight, bool with_counts) {
    const unsigned adding = __ballot_sync(kWholeWarp, bin < kBins);
    if (adding == 0) {
      return;
    }
    const int leader = __ffs(adding) - 1;
    const uint32_t leaders_bin = __shfl_sync(kWholeWarp, bin, leader);
    uint32_t count = 1;
    if (__all_sync(kWholeWarp, bin >= kBins || bin == leaders_bin)) {
      weight = bin < kBins ? weight : 0;
      for (int offset = 1; offset < kWarpSize; offset *= 2) {
        weight += __shfl_xor_sync(kWholeWarp, weight, offset);
      }
      count = __popc(adding);
      bin = static_cast<int>(threadIdx.x % kWarpSize) == leader ? bin : kBins;
    }
    if (bin >= kBins) {
      return;
    }
    const auto add = static_cast<uint32_t>(weight);
    const bool carries = atomicAdd(&low[bin], add) + add < add;
    const uint32_t carried = static_cast<uint32_t>(weight >> 32) + (carries ? 1 : 0);
    if (carried != 0) {
      atomicAdd(&high[bin], carried);
    }
    if (with_counts) {
      atomicAdd(&counts[bin], count);
    }
  }

  __device__ Weight WeightAt(int bin) const { return Weight{high[bin]} << 32 | low[bin]; }
};

}  // namespace ferrite::sampling

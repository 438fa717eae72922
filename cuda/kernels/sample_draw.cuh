// Draws one row's token from the histogram of its weights.
//
// Nothing is sorted. In the order of sampler.h (likeliest first) every question is the same one:
// which is the first token where the running sum, of weights or of ones, reaches a goal? A
// histogram over distances finds the bin, further ones over the keys in that bin narrow it down to
// one key, and a key's tokens weigh the same. top_k, top_p and min_p each give the weight that
// would be kept; the least of them is what the draw is a part of. From the histogram alone it can
// be told in which few bins all of that will happen: their tokens are listed by many blocks, so
// that one block need not read the whole row again for every question.
#pragma once

#include "cuda/kernels/sample_bins.cuh"

namespace ferrite::sampling {

// Chooses the token of one row, by a block of kDrawThreads that all call everything together.
class Drawing {
 public:
  // `bins` are the row's.
  __device__ Drawing(const Row& row, const Bins& bins, DrawShared& shared)
      : row_(row), max_key_(KeyOf(row.max_logit)), shared_(shared), bins_(bins) {
    bins_.Scan(0, 0, shared_);
  }

  // Marks the bins that Draw may have to look into.
  __device__ void Predict(float uniform) {
    for (int i = static_cast<int>(threadIdx.x); i < kBins / 32; i += kDrawThreads) {
      shared_.wanted[i] = 0;
    }
    if (threadIdx.x == 0) {
      shared_.first_wanted = kBins;
      shared_.last_wanted = 0;
    }
    __syncthreads();
    const GpuSamplingParams& params = *row_.params;
    Range kept = {bins_.total_weight, bins_.total_weight};
    if (CutsTopK()) {
      bins_.Locate({static_cast<uint32_t>(params.top_k), 0}, shared_);
      kept = {shared_.at.weight_before, shared_.at.weight_before + shared_.at.weight};
      if (threadIdx.x == 0) {
        Mark(shared_.bin);
      }
      __syncthreads();
    }
    const Range of_top_k = kept;
    if (params.top_p < 1.0f) {
      kept = kept.Min(Want({GoalOfTopP(of_top_k.least), GoalOfTopP(of_top_k.most)}));
    }
    if (params.min_p > 0 && MinPBin() + 1 < kBins) {
      kept = kept.Min(WantAround(MinPBin()));
    }
    Want({GoalOfDraw(kept.least, uniform), GoalOfDraw(kept.most, uniform)});
  }

  // Adds the tokens of the marked bins with ids in [begin, end) to the row's list.
  __device__ void ListPart(int32_t begin, int32_t end, RowState* state) {
    StartList();
    // A bin to spare on both sides, against rounding.
    const float furthest = static_cast<float>(shared_.last_wanted + 2) / kBinsPerUnit;
    const float nearest = static_cast<float>(max(shared_.first_wanted, 1u) - 1) / kBinsPerUnit;
    const float low = __fsub_rd(row_.max_logit, furthest * row_.params->temperature);
    const float high = __fsub_ru(row_.max_logit, nearest * row_.params->temperature);
    ForEachNear(row_.logits, begin, end, threadIdx.x, kDrawThreads, low, high,
                [&](int32_t id, float logit) {
                  const uint32_t bin = BinOf(row_.Distance(logit));
                  if (bin < kBins && IsWanted(bin) && !row_.Barred(id)) {
                    AddToList(bin, id, logit);
                  }
                });
    __syncthreads();
    const uint32_t listed = shared_.num_listed;
    if (threadIdx.x == 0) {
      shared_.list_begin = atomicAdd(&state->num_listed, listed);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < min(listed, kMaxListed); i += kDrawThreads) {
      if (const uint32_t to = shared_.list_begin + i; to < kMaxListed) {
        state->listed_logits[to] = shared_.logits[i];
        state->listed_ids[to] = shared_.ids[i];
      }
    }
  }

  // Whether all other blocks of the row have been here before.
  __device__ bool IsLastBlock(RowState* state) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      shared_.is_last_block = atomicAdd(&state->blocks_done, 1) == gridDim.x - 1;
    }
    __syncthreads();
    __threadfence();
    return shared_.is_last_block;
  }

  // Makes the row's list this block's.
  __device__ void TakeList(const RowState& state) {
    const uint32_t listed = __ldcg(&state.num_listed);
    for (uint32_t i = threadIdx.x; i < min(listed, kMaxListed); i += kDrawThreads) {
      shared_.logits[i] = __ldcg(&state.listed_logits[i]);
      shared_.ids[i] = __ldcg(&state.listed_ids[i]);
    }
    if (threadIdx.x == 0) {
      shared_.num_listed = listed;
    }
    has_wanted_ = listed <= kMaxListed;
    __syncthreads();
  }

  // The token that `uniform` picks, on whichever thread finds it; -1 on the others.
  __device__ int32_t Draw(float uniform) {
    const GpuSamplingParams& params = *row_.params;
    Weight kept = bins_.total_weight;
    if (CutsTopK()) {
      kept = WeightUpTo({static_cast<uint32_t>(params.top_k), 0});
    }
    const Weight of_top_k = kept;
    if (params.top_p < 1.0f) {
      kept = min(kept, WeightUpTo({0, GoalOfTopP(of_top_k)}));
    }
    if (params.min_p > 0) {
      kept = min(kept, WeightOfMinP());
    }
    const Goal goal = {0, GoalOfDraw(kept, uniform)};
    if (FindAmongMembers(goal)) {
      return threadIdx.x == 0 ? shared_.token : -1;
    }
    const Interval at = Narrow(goal);
    return FindMember(at, goal.MembersNeeded(at));
  }

 private:
  __device__ bool CutsTopK() const {
    const int32_t top_k = row_.params->top_k;
    return top_k > 0 && static_cast<uint32_t>(top_k) < bins_.total_count;
  }
  __device__ Weight GoalOfTopP(Weight kept) const {
    const double enough = static_cast<double>(row_.params->top_p) * static_cast<double>(kept);
    return max(Weight{1}, __double2ull_ru(enough));
  }
  __device__ static Weight GoalOfDraw(Weight kept, float uniform) {
    return __double2ull_rd(static_cast<double>(kept) * uniform) + 1;
  }

  // Marks the bins in which a goal in `goals` can be reached; returns between what the sum up to
  // the token that reaches it lies.
  __device__ Range Want(const Range& goals) {
    Weight before = bins_.weight_before;
#pragma unroll
    for (int i = 0; i < kOwnBins; ++i) {
      const Weight after = before + bins_.weights[i];
      if (before < goals.most && after >= goals.least && after > before) {
        Mark(Bins::First() + i);
      }
      if (before < goals.least && after >= goals.least) {
        shared_.range.least = before;
      }
      if (before < goals.most && after >= goals.most) {
        shared_.range.most = after;
      }
      before = after;
    }
    return ReadRange();
  }

  // Marks a bin and its neighbours; returns between what the sum up to a token in them lies.
  __device__ Range WantAround(uint32_t bin) {
    const uint32_t first = max(bin, 1u) - 1;
    const uint32_t last = bin + 1;
    Weight before = bins_.weight_before;
#pragma unroll
    for (int i = 0; i < kOwnBins; ++i) {
      const uint32_t own = Bins::First() + i;
      if (own >= first && own <= last) {
        Mark(own);
      }
      if (own == first) {
        shared_.range.least = before;
      }
      before += bins_.weights[i];
      if (own == last) {
        shared_.range.most = before;
      }
    }
    return ReadRange();
  }

  __device__ void Mark(uint32_t bin) {
    atomicOr(&shared_.wanted[bin / 32], 1u << bin % 32);
    atomicMin(&shared_.first_wanted, bin);
    atomicMax(&shared_.last_wanted, bin);
  }
  __device__ bool IsWanted(uint32_t bin) const {
    return (shared_.wanted[bin / 32] >> bin % 32 & 1) != 0;
  }
  __device__ Range ReadRange() const {
    __syncthreads();
    const Range range = shared_.range;
    __syncthreads();  // it is free again
    return range;
  }

  __device__ void StartList() {
    __syncthreads();  // nobody looks at the last list any more
    if (threadIdx.x == 0) {
      shared_.num_listed = 0;
    }
    __syncthreads();
  }
  __device__ void AddToList(uint32_t bin, int32_t id, float logit) {
    const uint32_t i = atomicAdd(&shared_.num_listed, 1);
    if (i < kMaxListed) {
      shared_.logits[i] = logit;
      shared_.ids[i] = PackBin(bin, id);
    }
  }

  // The usual way to answer a question: finds the token where the running sum reaches the goal, its
  // sum into shared.up_to and its id into shared.token, by comparing the few tokens of its bin with
  // each other. False if they are not listed, or too many.
  __device__ bool FindAmongMembers(const Goal& goal) {
    Members& members = shared_.members;
    if (threadIdx.x == 0) {
      members.count = 0;
    }
    bins_.Locate(goal, shared_);
    const uint32_t bin = shared_.bin;
    const Interval at = shared_.at;
    if (!has_wanted_ || !IsWanted(bin)) {
      __syncthreads();  // they are free again
      return false;
    }
    for (uint32_t i = threadIdx.x; i < shared_.num_listed; i += kDrawThreads) {
      if (BinOfPacked(shared_.ids[i]) == bin) {
        if (const uint32_t to = atomicAdd(&members.count, 1); to < kMaxMembers) {
          members.tokens[to] = Pack(shared_.logits[i], IdOfPacked(shared_.ids[i]));
          members.weights[to] = Weigh(shared_.logits[i]);
        }
      }
    }
    __syncthreads();
    const uint32_t count = members.count;
    if (count > kMaxMembers) {
      return false;
    }
    // A group of threads for each member sums up those before it.
    constexpr uint32_t kGroup = 8;
    const uint32_t lane = threadIdx.x % kGroup;
    for (uint32_t first = 0; first < count; first += kDrawThreads / kGroup) {
      const uint32_t own = first + threadIdx.x / kGroup;
      const Weight token = own < count ? members.tokens[own] : 0;
      Weight sum = 0;
      uint32_t before = 0;
      for (uint32_t i = lane; i < count; i += kGroup) {
        const bool is_before = members.tokens[i] > token;
        sum += is_before ? members.weights[i] : 0;
        before += is_before ? 1 : 0;
      }
#pragma unroll
      for (uint32_t offset = 1; offset < kGroup; offset *= 2) {
        sum += __shfl_xor_sync(kWholeWarp, sum, offset);
        before += __shfl_xor_sync(kWholeWarp, before, offset);
      }
      if (lane == 0 && own < count) {
        const Weight up_to = at.weight_before + sum + members.weights[own];
        if (goal.count > 0 ? at.count_before + before + 1 == goal.count
                           : up_to - members.weights[own] < goal.weight && up_to >= goal.weight) {
          shared_.up_to = up_to;
          shared_.token = IdOf(token);
        }
      }
    }
    __syncthreads();
    return true;
  }

  // About where min_p cuts, give or take a bin.
  __device__ uint32_t MinPBin() const { return BinOf(-logf(row_.params->min_p)); }

  // The weight of the tokens that weigh at least min_p, where the bins around are listed.
  __device__ Weight ListedWeightOfMinP(double min_p) {
    const uint32_t first = max(MinPBin(), 1u) - 1;
    const uint32_t last = MinPBin() + 1;
    __syncthreads();  // nobody looks at shared.up_to any more
    Weight before = bins_.weight_before;
#pragma unroll
    for (int i = 0; i < kOwnBins; ++i) {
      if (Bins::First() + i == first) {
        shared_.up_to = before;
      }
      before += bins_.weights[i];
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < shared_.num_listed; i += kDrawThreads) {
      const uint32_t bin = BinOfPacked(shared_.ids[i]);
      if (bin >= first && bin <= last) {
        const float distance = row_.Distance(shared_.logits[i]);
        if (exp(-static_cast<double>(distance)) >= min_p) {
          atomicAdd(&shared_.up_to, WeightOf(distance));
        }
      }
    }
    __syncthreads();
    return shared_.up_to;
  }

  // Sees to it that the tokens of `bin`, whose keys are in [low, high], are listed (unless they are
  // too many), so that closer looks need not read the row again.
  __device__ void List(uint32_t bin, uint32_t low, uint32_t high) {
    if (has_wanted_ && IsWanted(bin)) {
      return;
    }
    has_wanted_ = false;
    StartList();
    ForEachNear(row_.logits, 0, row_.vocab_size, threadIdx.x, kDrawThreads, LogitOf(low),
                LogitOf(high), [&](int32_t id, float logit) {
                  if (IsMember(id, logit, low, high)) {
                    AddToList(bin, id, logit);
                  }
                });
    __syncthreads();
  }

  // Histograms the tokens with keys in [low, high], which are listed, among others perhaps, unless
  // they were too many;
  // highest first, 2^shift keys a bin.
  __device__ Bins Fill(uint32_t low, uint32_t high, int shift, Weight weight_before,
                       uint32_t count_before) {
    shared_.histogram.Clear();
    const auto add = [&](bool in, float logit) {
      shared_.histogram.Add(in ? (high - KeyOf(logit)) >> shift : kBins, in ? Weigh(logit) : 0,
                            true);
    };
    if (Listed()) {
      for (uint32_t first = 0; first < shared_.num_listed; first += kDrawThreads) {
        const uint32_t i = first + threadIdx.x;
        const float logit = i < shared_.num_listed ? shared_.logits[i] : nanf("");
        add(IsBetween(logit, low, high), logit);
      }
    } else {
      ForEachNear(row_.logits, 0, row_.vocab_size, threadIdx.x, kDrawThreads, LogitOf(low),
                  LogitOf(high),
                  [&](int32_t id, float logit) { add(IsMember(id, logit, low, high), logit); });
    }
    __syncthreads();
    Bins bins = Bins::Of(shared_.histogram);
    bins.Scan(weight_before, count_before, shared_);
    return bins;
  }

  __device__ bool Listed() const { return shared_.num_listed <= kMaxListed; }

  // `low` is not 0, so that NaN is nowhere.
  __device__ static bool IsBetween(float logit, uint32_t low, uint32_t high) {
    const uint32_t key = KeyOf(logit);
    return key >= low && key <= high;
  }
  __device__ bool IsMember(int32_t id, float logit, uint32_t low, uint32_t high) const {
    return IsBetween(logit, low, high) && !row_.Barred(id);
  }

  __device__ Weight Weigh(float logit) const {
    const float distance = row_.Distance(logit);
    return distance < kMaxDistance ? WeightOf(distance) : 0;
  }

  __device__ uint32_t BinOfKey(uint32_t key) const { return BinOf(row_.Distance(LogitOf(key))); }

  // The lowest key in a bin of distances; by one warp.
  __device__ uint32_t LowestKey(uint32_t bin) const {
    return FirstKey(max_key_, [&](uint32_t key) { return BinOfKey(key) <= bin; });
  }
  __device__ uint32_t HighestKey(uint32_t bin) const {
    return bin == 0 ? max_key_ : LowestKey(bin - 1) - 1;
  }

  // The smallest interval in which the goal is reached: one key, or one token. The first bins may
  // come without counts.
  __device__ Interval Narrow(const Goal& goal) {
    bins_.Locate(goal, shared_);
    if (threadIdx.x < 2 * kWarpSize) {
      const bool lowest = threadIdx.x < kWarpSize;
      const uint32_t key = lowest ? LowestKey(shared_.bin) : HighestKey(shared_.bin);
      if (threadIdx.x % kWarpSize == 0) {
        (lowest ? shared_.at.low_key : shared_.at.high_key) = key;
      }
    }
    __syncthreads();
    Interval at = shared_.at;
    List(shared_.bin, at.low_key, at.high_key);
    while (at.count == 0 || (at.count > 1 && at.low_key < at.high_key)) {
      const int shift = max(0, 32 - __clz(at.high_key - at.low_key) - kBinBits);
      const Bins bins = Fill(at.low_key, at.high_key, shift, at.weight_before, at.count_before);
      bins.Locate(goal, shared_);
      const uint32_t high = at.high_key - (shared_.bin << shift);
      const uint32_t low = max(at.low_key, high - ((1u << shift) - 1));
      at = shared_.at;
      at.low_key = low;
      at.high_key = high;
    }
    __syncthreads();  // shared_.at is free again
    return at;
  }

  // The weight of the tokens up to and with the one where the running sum reaches the goal.
  __device__ Weight WeightUpTo(const Goal& goal) {
    if (FindAmongMembers(goal)) {
      return shared_.up_to;
    }
    const Interval at = Narrow(goal);
    return at.weight_before + goal.MembersNeeded(at) * (at.weight / at.count);
  }

  // The weight of the tokens that weigh at least min_p.
  __device__ Weight WeightOfMinP() {
    const double min_p = row_.params->min_p;
    if (has_wanted_ && MinPBin() + 1 < kBins) {
      return ListedWeightOfMinP(min_p);
    }
    if (threadIdx.x < kWarpSize) {
      const uint32_t low = FirstKey(max_key_, [&](uint32_t key) {
        return exp(-static_cast<double>(row_.Distance(LogitOf(key)))) >= min_p;
      });
      const uint32_t bin = BinOfKey(low);
      const uint32_t high = bin < kBins ? HighestKey(bin) : 0;
      if (threadIdx.x == 0) {
        shared_.bin = bin;
        shared_.at.low_key = low;
        shared_.at.high_key = high;
      }
    }
    __syncthreads();
    const uint32_t bin = shared_.bin;
    Weight before = bins_.weight_before;
#pragma unroll
    for (int i = 0; i < kOwnBins; ++i) {
      if (Bins::First() + i == bin) {
        shared_.at.weight_before = before;
      }
      before += bins_.weights[i];
    }
    __syncthreads();
    if (bin >= kBins) {
      return bins_.total_weight;
    }
    const Interval at = shared_.at;
    List(bin, at.low_key, at.high_key);
    return Fill(at.low_key, at.high_key, kWarpSize - 1, at.weight_before, 0).total_weight;
  }

  // The id of the `member`th (from 1) of the interval's tokens, by id; on one thread.
  __device__ int32_t FindMember(const Interval& at, uint32_t member) {
    if (at.count > 1 || !Listed()) {
      return FindInRow(at.low_key, at.high_key, member);
    }
    for (uint32_t i = threadIdx.x; i < shared_.num_listed; i += kDrawThreads) {
      if (IsBetween(shared_.logits[i], at.low_key, at.high_key)) {
        return IdOfPacked(shared_.ids[i]);
      }
    }
    return -1;
  }

  // Each warp counts a stretch of the row; the one that has the member looks again.
  __device__ int32_t FindInRow(uint32_t low, uint32_t high, uint32_t member) {
    const int lane = threadIdx.x % kWarpSize;
    const int warp = threadIdx.x / kWarpSize;
    const int32_t stretch = (row_.vocab_size + kDrawWarps - 1) / kDrawWarps;
    const int32_t begin = warp * stretch;
    const int32_t end = min(begin + stretch, row_.vocab_size);
    const auto for_each_member = [&](auto visit) {
      ForEachNear(row_.logits, begin, end, lane, kWarpSize, LogitOf(low), LogitOf(high),
                  [&](int32_t id, float logit) {
                    const bool is = IsMember(id, logit, low, high);
                    visit(id, is, __ballot_sync(kWholeWarp, is));
                  });
    };
    uint32_t count = 0;
    for_each_member([&](int32_t, bool, unsigned members) { count += __popc(members); });
    if (lane == 0) {
      shared_.warp_counts[warp] = count;
    }
    __syncthreads();
    uint32_t before = 0;
    for (int other = 0; other < warp; ++other) {
      before += shared_.warp_counts[other];
    }
    int32_t found = -1;
    if (before < member && before + count >= member) {
      for_each_member([&](int32_t id, bool is, unsigned members) {
        if (is && before + __popc(members & ((1u << lane) - 1)) + 1 == member) {
          found = id;
        }
        before += __popc(members);
      });
    }
    return found;
  }

  const Row& row_;
  const uint32_t max_key_;
  DrawShared& shared_;
  Bins bins_;                // over distances
  bool has_wanted_ = false;  // the list is that of the marked bins
};

}  // namespace ferrite::sampling

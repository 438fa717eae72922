// A block reduces a part of a row, the last one of a row to finish merges the parts.
//
// The likeliest n of many keys, no two of which are equal, are found without sorting: threads form
// groups, and the n-th greatest of the groups' greatest keys is a bound that at least n keys reach,
// and hardly more in any usual order. Those are listed, and each one's rank is how many of them are
// greater.
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/logprobs.h"
#include "cuda/kernels/sample_parts.cuh"

namespace ferrite {
namespace {

using sampling::IdOf;
using sampling::kWarpSize;
using sampling::kWholeWarp;
using sampling::LogitOf;
using sampling::Pack;

using Key = unsigned long long;  // of a token: Pack, never 0; the greater, the likelier

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kValues = 16;  // a thread
constexpr int kPart = kThreads * kValues;
constexpr int kMaxParts = (1 << 18) / kPart;
constexpr int kMaxTop = GpuRowLogprobs::kMaxTop;
constexpr int kGroupSize = 4;  // threads
constexpr int kGroups = kThreads / kGroupSize;
constexpr int kMergedKeys = (kMaxParts * kMaxTop + kThreads - 1) / kThreads;  // a thread
// The keys of the groups that reach the bound.
constexpr int kMaxListed = kMaxTop * kGroupSize * kValues;
static_assert(kMergedKeys <= kValues && kGroups >= kMaxTop);

struct Part {
  Key top[kMaxTop];  // sorted; 0 where there are fewer
  float max;
  float sum;  // of exp(logit - max)
};

struct Shared {
  Key groups[kGroups];
  Key bound;
  uint32_t num_listed;
  Key listed[kMaxListed];
  Key top[kMaxTop];
  float warps[kWarps];
  double normalizer;
  bool is_last;
};

// The workspace: how many of each row's blocks are done, then the rows' parts.
size_t CounterBytes(int32_t rows) { return (rows * sizeof(uint32_t) + 15) / 16 * 16; }

int32_t NumParts(int32_t vocab_size) { return (vocab_size + kPart - 1) / kPart; }

// By the whole block: the `count` greatest of all threads' keys, sorted, into shared.top; zeros
// where there are fewer. A key of 0 is none.
template <int kKeys>
__device__ void SelectTop(const Key (&keys)[kKeys], int count, Shared& shared) {
  Key best = 0;
#pragma unroll
  for (int i = 0; i < kKeys; ++i) {
    best = max(best, keys[i]);
  }
#pragma unroll
  for (int offset = 1; offset < kGroupSize; offset *= 2) {
    best = max(best, __shfl_xor_sync(kWholeWarp, best, offset));
  }
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread % kGroupSize == 0) {
    shared.groups[thread / kGroupSize] = best;
  }
  if (thread < kMaxTop) {
    shared.top[thread] = 0;
  }
  if (thread == 0) {
    shared.num_listed = 0;
    shared.bound = 1;  // every key, where fewer groups than `count` have one
  }
  __syncthreads();
  if (thread < kGroups) {
    const Key own = shared.groups[thread];
    int rank = 0;
#pragma unroll 16
    for (int i = 0; i < kGroups; ++i) {
      rank += shared.groups[i] > own ? 1 : 0;
    }
    if (rank == count - 1 && own != 0) {
      shared.bound = own;
    }
  }
  __syncthreads();
  const Key bound = shared.bound;
#pragma unroll
  for (int i = 0; i < kKeys; ++i) {
    if (keys[i] >= bound) {
      shared.listed[atomicAdd(&shared.num_listed, 1)] = keys[i];
    }
  }
  __syncthreads();
  const auto listed = static_cast<int>(shared.num_listed);
  for (int i = thread; i < listed; i += kThreads) {
    const Key own = shared.listed[i];
    int rank = 0;
    for (int j = 0; j < listed; ++j) {
      rank += shared.listed[j] > own ? 1 : 0;
    }
    if (rank < count) {
      shared.top[rank] = own;
    }
  }
  __syncthreads();
}

__device__ float WarpMax(float value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, offset));
  }
  return value;
}

__device__ float WarpSum(float value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, offset);
  }
  return value;
}

// Of all threads' values, on every thread. `identity` changes nothing.
template <typename Reduce>
__device__ float BlockReduce(float value, float identity, Shared& shared, Reduce reduce_warp) {
  value = reduce_warp(value);
  __syncthreads();  // the last reduction has been read
  if (threadIdx.x % kWarpSize == 0) {
    shared.warps[threadIdx.x / kWarpSize] = value;
  }
  __syncthreads();
  const unsigned lane = threadIdx.x % kWarpSize;
  return reduce_warp(lane < kWarps ? shared.warps[lane] : identity);
}

__device__ void ReducePart(const float* logits, int32_t vocab_size, int count, Part* part,
                           Shared& shared) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t begin = static_cast<int32_t>(blockIdx.x) * kPart + thread;
  float values[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const int32_t id = begin + i * kThreads;
    values[i] = id < vocab_size ? logits[id] : -INFINITY;
  }
  float most = -INFINITY;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    most = fmaxf(most, values[i]);  // never NaN
  }
  most = BlockReduce(most, -INFINITY, shared, WarpMax);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    sum += values[i] > -INFINITY ? expf(values[i] - most) : 0;
  }
  sum = BlockReduce(sum, 0, shared, WarpSum);
  if (count > 0) {
    Key keys[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const int32_t id = begin + i * kThreads;
      keys[i] = id < vocab_size ? Pack(values[i], id) : 0;
    }
    SelectTop(keys, count, shared);
    if (thread < count) {
      part->top[thread] = shared.top[thread];
    }
  }
  if (thread == 0) {
    part->max = most;
    part->sum = sum;
  }
}

// The logarithm of what the softmax divides by; by one warp, on its every lane.
__device__ double LogNormalizer(const Part* parts, int num_parts) {
  const auto lane = static_cast<int>(threadIdx.x % kWarpSize);
  float most = -INFINITY;
  for (int i = lane; i < num_parts; i += kWarpSize) {
    most = fmaxf(most, __ldcg(&parts[i].max));
  }
  most = WarpMax(most);
  double sum = 0;
  for (int i = lane; i < num_parts; i += kWarpSize) {
    const float part_most = __ldcg(&parts[i].max);
    sum += part_most > -INFINITY
               ? __ldcg(&parts[i].sum) * exp(static_cast<double>(part_most) - most)
               : 0;
  }
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(kWholeWarp, sum, offset);
  }
  return most + log(sum);
}

__device__ void MergeParts(const Part* parts, int num_parts, int count, const float* logits,
                           int32_t token, GpuRowLogprobs* out, Shared& shared) {
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread < kWarpSize) {
    const double normalizer = LogNormalizer(parts, num_parts);
    if (thread == 0) {
      shared.normalizer = normalizer;
      out->chosen = static_cast<float>(logits[token] - normalizer);
    }
  }
  if (count == 0) {
    return;
  }
  Key keys[kMergedKeys];
#pragma unroll
  for (int i = 0; i < kMergedKeys; ++i) {
    const int at = i * kThreads + thread;
    keys[i] = at < num_parts * count ? __ldcg(&parts[at / count].top[at % count]) : 0;
  }
  SelectTop(keys, count, shared);
  if (thread < count && shared.top[thread] != 0) {
    out->top_ids[thread] = IdOf(shared.top[thread]);
    out->top[thread] = static_cast<float>(LogitOf(shared.top[thread]) - shared.normalizer);
  }
}

// What the row asks for; -1 if nothing.
__device__ int32_t Wanted(const LogprobsArguments& a, unsigned row) {
  if (a.wanted != nullptr) {
    return a.wanted[row];
  }
  const int32_t slot = a.row_slots[row];
  return slot < 0 ? -1 : a.params[slot].num_logprobs;
}

// grid [parts, rows].
__global__ __launch_bounds__(kThreads) void LogprobsKernel(LogprobsArguments a, uint32_t* done,
                                                           Part* all_parts) {
  __shared__ Shared shared;
  AllowNext();
  WaitForPrevious();
  const unsigned row = blockIdx.y;
  const int32_t wanted = Wanted(a, row);
  if (wanted < 0) {
    return;
  }
  const int count = min(wanted, kMaxTop);
  const float* logits = a.logits + int64_t{row} * a.vocab_size;
  Part* parts = all_parts + int64_t{row} * gridDim.x;
  ReducePart(logits, a.vocab_size, count, &parts[blockIdx.x], shared);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.is_last = atomicAdd(&done[row], 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!shared.is_last) {
    return;
  }
  __threadfence();
  if (threadIdx.x == 0) {
    done[row] = 0;  // for the next call
  }
  MergeParts(parts, static_cast<int>(gridDim.x), count, logits, a.tokens[row], &a.out[row], shared);
}

}  // namespace

size_t LogprobsWorkspaceBytes(int32_t max_rows, int32_t vocab_size) {
  return CounterBytes(max_rows) + size_t(max_rows) * NumParts(vocab_size) * sizeof(Part);
}

cudaError_t ComputeLogprobs(const LogprobsArguments& a, cudaStream_t stream) {
  if (a.num_rows == 0) {
    return cudaSuccess;
  }
  const int32_t num_parts = NumParts(a.vocab_size);
  auto* done = static_cast<uint32_t*>(a.workspace);
  auto* parts = reinterpret_cast<Part*>(static_cast<char*>(a.workspace) + CounterBytes(a.max_rows));
  return LaunchOverlapped(LogprobsKernel, dim3(num_parts, a.num_rows), kThreads, 0, stream, a, done,
                          parts);
}

}  // namespace ferrite

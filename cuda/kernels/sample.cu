#include "cuda/kernels/sample.h"

#include <algorithm>

#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/sample_draw.cuh"
#include "cuda/kernels/sample_parts.cuh"
#include "engine/random.h"

namespace ferrite {
namespace {

using namespace sampling;  // NOLINT: this file is its other half

constexpr int kScanThreads = 256;
constexpr int kSumThreads = 1024;

__device__ Weight WarpMax(Weight value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = max(value, __shfl_xor_sync(kWholeWarp, value, offset));
  }
  return value;
}

// grid [splits, rows]. Finds the likeliest token of each part of each row, and clears the histogram
// of the rows that will need one.
__global__ __launch_bounds__(kScanThreads) void FindLikeliest(SampleArguments a) {
  __shared__ Weight warp_best[kScanThreads / kWarpSize];
  AllowNext();
  WaitForPrevious();
  if (a.row_slots[blockIdx.y] < 0) {
    return;
  }
  const Row row(a, blockIdx.y);
  RowState& state = static_cast<RowState*>(a.workspace)[blockIdx.y];
  if (row.params->temperature > 0) {
    for (unsigned i = blockIdx.x * kScanThreads + threadIdx.x; i < kBins;
         i += gridDim.x * kScanThreads) {
      state.weights[i] = 0;
      state.counts[i] = 0;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      state.blocks_done = 0;
      state.num_listed = 0;
    }
  }
  const int32_t part = (a.vocab_size + gridDim.x - 1) / gridDim.x;
  const int32_t begin = blockIdx.x * part;
  float best = -INFINITY;
  int32_t best_id = 0;  // also the answer where there is nothing but -inf and NaN
  ForEachLogit<8>(row.logits, begin, min(begin + part, a.vocab_size), threadIdx.x, kScanThreads,
                  [&](int32_t id, float logit) {
                    if (logit > best && !row.Barred(id)) {
                      best = logit;
                      best_id = id;
                    }
                  });
  const Weight packed = WarpMax(Pack(best, best_id));
  if (threadIdx.x % kWarpSize == 0) {
    warp_best[threadIdx.x / kWarpSize] = packed;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    Weight most = packed;
    for (const Weight other : warp_best) {
      most = max(most, other);
    }
    state.best[blockIdx.x] = most;
  }
}

// The likeliest token of the row, on every thread.
__device__ Weight ReadLikeliest(const RowState& state, int32_t splits) {
  Weight best = 0;
  for (int32_t i = threadIdx.x % kWarpSize; i < splits; i += kWarpSize) {
    best = max(best, state.best[i]);
  }
  return WarpMax(best);
}

// grid [parts, rows]. Rows that draw get the histogram of their weights over distance; the others'
// tokens are the likeliest.
__global__ __launch_bounds__(kSumThreads) void SumWeights(SampleArguments a, int32_t splits) {
  __shared__ Histogram histogram;
  AllowNext();
  WaitForPrevious();
  if (a.row_slots[blockIdx.y] < 0) {
    return;
  }
  Row row(a, blockIdx.y);
  RowState& state = static_cast<RowState*>(a.workspace)[blockIdx.y];
  const Weight likeliest = ReadLikeliest(state, splits);
  row.max_logit = LogitOf(likeliest);
  if (!(row.params->temperature > 0) || !isfinite(row.max_logit)) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      a.tokens[blockIdx.y] = IdOf(likeliest);
    }
    return;
  }
  histogram.Clear();
  const int32_t part = (a.vocab_size + gridDim.x - 1) / gridDim.x;
  const int32_t begin = blockIdx.x * part;
  ForEachLogit<4>(row.logits, begin, min(begin + part, a.vocab_size), threadIdx.x, kSumThreads,
                  [&](int32_t id, float logit) {
                    const float distance = row.Distance(logit);
                    const uint32_t bin = row.Barred(id) ? kBins : BinOf(distance);
                    histogram.Add(bin, bin < kBins ? WeightOf(distance) : 0, row.params->top_k > 0);
                  });
  __syncthreads();
  // Each block begins elsewhere, so that they do not queue for one address after the other.
  for (int j = threadIdx.x; j < kBins; j += kSumThreads) {
    const int i = static_cast<int>(j + blockIdx.x * kWarpSize) % kBins;
    if (const Weight weight = histogram.WeightAt(i); weight > 0) {
      atomicAdd(&state.weights[i], weight);
    }
    if (const uint32_t count = histogram.counts[i]; count > 0) {
      atomicAdd(&state.counts[i], count);
    }
  }
}

// grid [parts, rows]. Chooses the tokens of the rows that draw: every block lists what its part has
// in the bins that matter, and a row's last block to finish draws.
__global__ __launch_bounds__(kDrawThreads, 2) void DrawTokens(SampleArguments a, int32_t splits) {
  __shared__ DrawShared shared;
  AllowNext();
  WaitForPrevious();
  if (a.row_slots[blockIdx.y] < 0) {
    return;
  }
  Row row(a, blockIdx.y);
  if (!(row.params->temperature > 0)) {
    return;
  }
  RowState& state = static_cast<RowState*>(a.workspace)[blockIdx.y];
  const Bins bins = Bins::Of(state);  // on its way while the next is read
  row.max_logit = LogitOf(ReadLikeliest(state, splits));
  if (!isfinite(row.max_logit)) {
    return;
  }
  const float uniform = UniformDraw(row.params->seed, row.params->sample_index,
                                    static_cast<uint32_t>(a.output_indices[blockIdx.y]));
  Drawing drawing(row, bins, shared);
  drawing.Predict(uniform);
  const int32_t part = (a.vocab_size + gridDim.x - 1) / gridDim.x;
  const int32_t begin = blockIdx.x * part;
  drawing.ListPart(begin, min(begin + part, a.vocab_size), &state);
  if (!drawing.IsLastBlock(&state)) {
    return;
  }
  drawing.TakeList(state);
  const int32_t token = drawing.Draw(uniform);
  if (token >= 0) {
    a.tokens[blockIdx.y] = token;
  }
}

// Into how many parts to cut a row: enough blocks to fill a GPU, but none with little to do.
int32_t Parts(const SampleArguments& a, int32_t blocks, int32_t least, int32_t most) {
  const int32_t worthwhile = (a.vocab_size + least - 1) / least;
  return std::clamp(blocks / a.num_rows, 1, std::min(worthwhile, most));
}

}  // namespace

size_t SampleWorkspaceBytes(int32_t max_rows, int32_t /*vocab_size*/) {
  return max_rows * sizeof(RowState);
}

cudaError_t SampleTokens(const SampleArguments& a, cudaStream_t stream) {
  const int32_t splits = Parts(a, 1024, 2048, kMaxSplits);
  const dim3 scan_grid(splits, a.num_rows);
  if (const cudaError_t error =
          LaunchOverlapped(FindLikeliest, scan_grid, kScanThreads, 0, stream, a);
      error != cudaSuccess) {
    return error;
  }
  const dim3 sum_grid(Parts(a, 512, 4096, kMaxSplits), a.num_rows);
  if (const cudaError_t error =
          LaunchOverlapped(SumWeights, sum_grid, kSumThreads, 0, stream, a, splits);
      error != cudaSuccess) {
    return error;
  }
  const dim3 draw_grid(Parts(a, 256, 2048, kMaxSplits), a.num_rows);
  return LaunchOverlapped(DrawTokens, draw_grid, kDrawThreads, 0, stream, a, splits);
}

}  // namespace ferrite

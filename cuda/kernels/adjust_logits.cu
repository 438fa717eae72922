#include "cuda/kernels/adjust_logits.h"

#include "cuda/kernels/launch.cuh"

namespace ferrite {
namespace {

constexpr int kSetThreads = 1024;
constexpr int kAdjustThreads = 256;
constexpr int kValues = 16;  // a thread
constexpr int kPart = kAdjustThreads * kValues;
constexpr int kCountThreads = 128;

__device__ uint16_t* CountsOf(const AdjustState& state, int32_t slot) {
  return state.counts + int64_t{slot} * CountStride(state.vocab_size);
}

__device__ uint32_t* BarredOf(const AdjustState& state, int32_t slot) {
  return state.barred + int64_t{slot} * BarredWords(state.vocab_size);
}

__device__ GpuLogitBias* BiasesOf(const AdjustState& state, int32_t slot) {
  return state.biases + int64_t{slot} * AdjustState::kMaxBiases;
}

// A block a slot: first what has no entry, then the entries.
__global__ __launch_bounds__(kSetThreads) void SetSlotAdjustmentsKernel(
    const SlotAdjustment* adjustments, const AdjustEntry* entries, AdjustState state) {
  AllowNext();
  WaitForPrevious();
  const SlotAdjustment a = adjustments[blockIdx.x];
  const auto thread = static_cast<int32_t>(threadIdx.x);
  uint16_t* counts = CountsOf(state, a.slot);
  uint32_t* barred = BarredOf(state, a.slot);
  if (a.has_counts != 0) {
    auto* vectors = reinterpret_cast<uint4*>(counts);
    for (int32_t i = thread; i < CountStride(state.vocab_size) / 8; i += kSetThreads) {
      vectors[i] = make_uint4(0, 0, 0, 0);
    }
  }
  if (a.has_barred != 0) {
    for (int32_t i = thread; i < BarredWords(state.vocab_size); i += kSetThreads) {
      barred[i] = a.other_words;
    }
  }
  __syncthreads();
  const AdjustEntry* entry = entries + a.first_entry;
  for (int32_t i = thread; i < a.num_counts; i += kSetThreads) {
    counts[entry[i].at] = static_cast<uint16_t>(entry[i].value);
  }
  entry += a.num_counts;
  for (int32_t i = thread; i < a.num_words; i += kSetThreads) {
    barred[entry[i].at] = entry[i].value;
  }
  entry += a.num_words;
  GpuLogitBias* biases = BiasesOf(state, a.slot);
  for (int32_t i = thread; i < a.num_biases; i += kSetThreads) {
    biases[i] = {static_cast<int32_t>(entry[i].at), __uint_as_float(entry[i].value)};
  }
}

// Rounded after every operation, as on the host.
__device__ float Penalize(float logit, uint32_t count, const GpuSamplingParams& params) {
  if (count == 0) {
    return logit;
  }
  logit = logit > 0 ? __fdiv_rn(logit, params.repetition_penalty)
                    : __fmul_rn(logit, params.repetition_penalty);
  const uint32_t in_output = count & AdjustState::kMaxCount;
  if (in_output == 0) {
    return logit;
  }
  const float frequency = __fmul_rn(static_cast<float>(in_output), params.frequency_penalty);
  return __fsub_rn(logit, __fadd_rn(frequency, params.presence_penalty));
}

// grid [parts, rows].
__global__ __launch_bounds__(kAdjustThreads) void AdjustLogitsKernel(AdjustLogitsArguments a) {
  AllowNext();
  WaitForPrevious();
  const unsigned row = blockIdx.y;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int32_t slot = a.row_slots[row];
  const bool adjusts = slot >= 0 && a.params[slot].adjusts;
  if (blockIdx.x == 0 && thread == 0) {
    a.out_slots[row] = adjusts ? slot : -1;
  }
  if (!adjusts) {
    return;
  }
  const GpuSamplingParams& params = a.params[slot];
  const int32_t vocab_size = a.state.vocab_size;
  const uint16_t* counts = params.counts_tokens ? CountsOf(a.state, slot) : nullptr;
  const uint32_t* barred = params.bars_tokens ? BarredOf(a.state, slot) : nullptr;
  const float* logits = a.logits + int64_t{row} * vocab_size;
  float* out = a.out + int64_t{row} * vocab_size;
  const int32_t begin = static_cast<int32_t>(blockIdx.x) * kPart;
  const int32_t end = min(begin + kPart, vocab_size);

  float values[kValues];
  uint32_t found[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const int32_t id = begin + i * kAdjustThreads + thread;
    values[i] = id < end ? logits[id] : 0;
    found[i] = id < end && counts != nullptr ? counts[id] : 0;
  }
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const int32_t id = begin + i * kAdjustThreads + thread;
    if (id < end) {
      const bool is_barred = barred != nullptr && (barred[id / 32] >> id % 32 & 1) != 0;
      out[id] = is_barred ? -INFINITY : Penalize(values[i], found[i], params);
    }
  }
  __syncthreads();
  // No id twice. Those that are barred stay so.
  const GpuLogitBias* biases = BiasesOf(a.state, slot);
  for (int32_t i = thread; i < params.num_biases; i += kAdjustThreads) {
    const GpuLogitBias bias = biases[i];
    if (bias.id >= begin && bias.id < end) {
      out[bias.id] = __fadd_rn(out[bias.id], bias.bias);
    }
  }
}

__global__ void CountTokensKernel(const int32_t* tokens, const int32_t* row_slots, int32_t num_rows,
                                  const GpuSamplingParams* params, AdjustState state) {
  const auto row = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  AllowNext();
  WaitForPrevious();
  if (row >= num_rows || row_slots[row] < 0 || !params[row_slots[row]].counts_tokens) {
    return;
  }
  const int32_t token = tokens[row];
  if (token >= 0 && token < state.vocab_size) {
    uint16_t& count = CountsOf(state, row_slots[row])[token];
    if ((count & AdjustState::kMaxCount) < AdjustState::kMaxCount) {
      count = static_cast<uint16_t>(count + 1);
    }
  }
}

}  // namespace

cudaError_t SetSlotAdjustments(const SlotAdjustment* adjustments, int32_t num_adjustments,
                               const AdjustEntry* entries, const AdjustState& state,
                               cudaStream_t stream) {
  if (num_adjustments == 0) {
    return cudaSuccess;
  }
  return LaunchOverlapped(SetSlotAdjustmentsKernel, num_adjustments, kSetThreads, 0, stream,
                          adjustments, entries, state);
}

cudaError_t AdjustLogits(const AdjustLogitsArguments& a, cudaStream_t stream) {
  if (a.num_rows == 0) {
    return cudaSuccess;
  }
  const dim3 grid((a.state.vocab_size + kPart - 1) / kPart, a.num_rows);
  return LaunchOverlapped(AdjustLogitsKernel, grid, kAdjustThreads, 0, stream, a);
}

cudaError_t CountTokens(const int32_t* tokens, const int32_t* row_slots, int32_t num_rows,
                        const GpuSamplingParams* params, const AdjustState& state,
                        cudaStream_t stream) {
  if (num_rows == 0) {
    return cudaSuccess;
  }
  return LaunchOverlapped(CountTokensKernel, (num_rows + kCountThreads - 1) / kCountThreads,
                          kCountThreads, 0, stream, tokens, row_slots, num_rows, params, state);
}

}  // namespace ferrite

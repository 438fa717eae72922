// Penalties, biases and barred tokens on the device, as engine/logit_adjuster.h has them.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/sample.h"

namespace ferrite {

struct GpuLogitBias {
  int32_t id;
  float bias;
};

// What the slots need beside their GpuSamplingParams; everything is in device memory. Of a slot
// whose parameters do not say that they count tokens, or bar some, that part is undefined.
struct AdjustState {
  static constexpr int32_t kMaxBiases = 1024;
  static constexpr uint32_t kInPrompt = 0x8000;
  static constexpr uint32_t kMaxCount = 0x7FFF;

  int32_t vocab_size = 0;
  // [max_sequences, CountStride(vocab_size)] How often the token is in the output, up to kMaxCount,
  // and kInPrompt.
  uint16_t* counts = nullptr;
  // [max_sequences, BarredWords(vocab_size)] A bit for each token: id % 32 of word id / 32.
  uint32_t* barred = nullptr;
  GpuLogitBias* biases = nullptr;  // [max_sequences, kMaxBiases]; params say how many there are
};

// A slot's counts begin at 16 bytes.
__host__ __device__ constexpr int32_t CountStride(int32_t vocab_size) {
  return (vocab_size + 7) / 8 * 8;
}
__host__ __device__ constexpr int32_t BarredWords(int32_t vocab_size) {
  return (vocab_size + 31) / 32;
}

// One value of a slot: a count by its token, a word of the barred ones by its index, or the bits of
// a bias by its token.
struct AdjustEntry {
  uint32_t at;
  uint32_t value;
};

// A slot's state anew: its entries follow each other, counts, words and biases.
struct SlotAdjustment {
  int32_t slot;
  int32_t first_entry;
  int32_t num_counts;
  int32_t num_words;
  int32_t num_biases;  // at most AdjustState::kMaxBiases
  int32_t has_counts;  // those without an entry become 0
  int32_t has_barred;  // words without an entry become other_words
  uint32_t other_words;
};

// `adjustments` [num_adjustments], no slot twice, at most 65535; `entries` within their bounds.
cudaError_t SetSlotAdjustments(const SlotAdjustment* adjustments, int32_t num_adjustments,
                               const AdjustEntry* entries, const AdjustState& state,
                               cudaStream_t stream);

struct AdjustLogitsArguments {
  const float* logits = nullptr;              // [num_rows, vocab_size] fp32
  int32_t num_rows = 0;                       // at most 65535
  const GpuSamplingParams* params = nullptr;  // [max_sequences]
  const int32_t* row_slots = nullptr;         // [num_rows]; -1: no row
  AdjustState state;
  float* out = nullptr;          // [num_rows, vocab_size]; rows that adjust nothing stay
  int32_t* out_slots = nullptr;  // [num_rows] row_slots of the rows that do, -1 for the others
};

// The host's arithmetic to the bit, but for counts beyond AdjustState::kMaxCount.
cudaError_t AdjustLogits(const AdjustLogitsArguments& arguments, cudaStream_t stream);

// Row r's token is one more of its slot's output; row_slots [num_rows]: none twice, -1: no row.
cudaError_t CountTokens(const int32_t* tokens, const int32_t* row_slots, int32_t num_rows,
                        const GpuSamplingParams* params, const AdjustState& state,
                        cudaStream_t stream);

}  // namespace ferrite

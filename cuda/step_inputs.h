// A step's inputs as they travel to the device: one run of 32-bit words.
#pragma once

#include <cstdint>
#include <span>

#include "cuda/kernels/pool.h"
#include "engine/batch.h"

namespace ferrite {

// How many entries each of the arrays has; a captured graph's are padded beyond the batch's.
struct StepShape {
  int32_t tokens = 0;     // T
  int32_t sequences = 0;  // S
  int32_t samples = 0;    // R
  int32_t scored = 0;     // P
  int32_t pooled = 0;     // E, sequences some of whose tokens are pooled

  // Words that StepInputs of this shape take.
  int64_t words() const {
    return 3 * int64_t{tokens} + 4 * int64_t{sequences} + 1 + 3 * int64_t{samples} +
           3 * int64_t{scored} + kPoolItemWords * int64_t{pooled};
  }
  static constexpr int32_t kPoolItemWords = sizeof(PoolItem) / sizeof(int32_t);
};

// Where the arrays begin, in host or device memory.
struct StepInputs {
  int32_t* token_ids = nullptr;       // [T]
  int32_t* positions = nullptr;       // [T]
  int32_t* slot_mapping = nullptr;    // [T]; -1 where padded: nothing is written to the cache
  int32_t* cu_seqlens = nullptr;      // [S+1]
  int32_t* kv_lens = nullptr;         // [S]
  int32_t* seq_slots = nullptr;       // [S]; -1 where padded
  int32_t* input_rows = nullptr;      // [S]
  int32_t* sample_tokens = nullptr;   // [R] which token's logits the row samples
  int32_t* row_slots = nullptr;       // [R] whose parameters; -1 where padded
  int32_t* output_indices = nullptr;  // [R]
  int32_t* scored_tokens = nullptr;   // [P] whose next token's log-probability is wanted
  int32_t* scored_next = nullptr;     // [P] that token
  int32_t* scored_top = nullptr;      // [P] and with it those of how many likeliest
  PoolItem* pool_items = nullptr;     // [E]

  // The arrays of `shape` in the words at `base`.
  static StepInputs At(int32_t* base, const StepShape& shape);
};

// Writes `batch` to host memory laid out for `shape`, which is no smaller, padding the rest. Padded
// tokens are sequences of one token each, so a padded shape has as many of both. Nothing scored or
// pooled is padded; `pool_items` [E].
void FillStepInputs(const Batch& batch, std::span<const PoolItem> pool_items,
                    const StepShape& shape, const StepInputs& inputs);

}  // namespace ferrite

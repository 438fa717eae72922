// A step's inputs as they travel to the device: one run of 32-bit words.
#pragma once

#include <cstdint>

#include "engine/batch.h"

namespace ferrite {

// How many entries each of the arrays has; a captured graph's are padded beyond the batch's.
struct StepShape {
  int32_t tokens = 0;     // T
  int32_t sequences = 0;  // S
  int32_t samples = 0;    // R

  // Words that StepInputs of this shape take.
  int64_t words() const {
    return 3 * int64_t{tokens} + 4 * int64_t{sequences} + 1 + 3 * int64_t{samples};
  }
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

  // The arrays of `shape` in the words at `base`.
  static StepInputs At(int32_t* base, const StepShape& shape);
};

// Writes `batch` to host memory laid out for `shape`, which is no smaller, padding the rest. Padded
// tokens are sequences of one token each, so a padded shape has as many of both.
void FillStepInputs(const Batch& batch, const StepShape& shape, const StepInputs& inputs);

}  // namespace ferrite

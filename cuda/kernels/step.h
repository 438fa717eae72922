// The bookkeeping of a step that happens on the device.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/sample.h"

namespace ferrite {

// Entry `index` of `slot`'s row of the block tables becomes `block`.
struct TableChange {
  int32_t slot;
  int32_t index;
  int32_t block;
};

// Everything is in device memory.
struct SlotChanges {
  const TableChange* tables = nullptr;  // [num_tables], no entry named twice
  int32_t num_tables = 0;
  const GpuSamplingParams* params = nullptr;  // [num_params]
  const int32_t* param_slots = nullptr;       // [num_params] where they go, no slot twice
  int32_t num_params = 0;
};

// block_tables: [max_sequences, blocks_per_slot]; params: [max_sequences].
cudaError_t ApplySlotChanges(const SlotChanges& changes, int32_t blocks_per_slot,
                             int32_t* block_tables, GpuSamplingParams* params, cudaStream_t stream);

// For every sequence whose input_rows [num_sequences] is not -1, its one token's id becomes that
// row's token of the step before: token_ids[cu_seqlens[s]] = sampled[input_rows[s]].
cudaError_t ResolveInputs(const int32_t* input_rows, const int32_t* cu_seqlens,
                          int32_t num_sequences, const int32_t* sampled, int32_t* token_ids,
                          cudaStream_t stream);

}  // namespace ferrite

// One vector for each sequence from the final norm's outputs.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/kernel_types.h"

namespace ferrite {

// A sequence's share of a step.
struct PoolItem {
  int32_t first_token;  // of the step's
  int32_t num_tokens;   // at least 1
  int32_t slot;         // whose sum it goes into
  int32_t adds;         // 0: the slot's sum begins anew
  int32_t out;          // the row that gets the mean, or -1: there is more to come
  int32_t divisor;      // how many tokens that mean is of
};

struct PoolArguments {
  const float* residual = nullptr;  // [T, hidden] fp32, what the final norm is of
  const float* weight = nullptr;    // [hidden] fp32, the norm's
  float epsilon = 0;
  int32_t hidden = 0;
  const PoolItem* items = nullptr;  // [num_items], no slot and no row twice
  int32_t num_items = 0;            // at most 65535
  int32_t max_tokens = 0;           // the most that an item has
  // Whether tokens are added one by one in their order, so that the mean has the same bits however
  // a sequence is cut into steps. Slower.
  bool in_order = false;
  float* scales = nullptr;  // [T] scratch
  float* sums = nullptr;    // [max_sequences, hidden] from step to step
  float* out = nullptr;     // [rows, hidden]
};

// Everything is in fp32, in an order that depends on the item alone.
cudaError_t Pool(const PoolArguments& arguments, cudaStream_t stream);

}  // namespace ferrite

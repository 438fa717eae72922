// What computes attention: a few query rows against all the keys that they see, one tile a call.
#pragma once

#include <cstdint>

#include "cpu/compute_type.h"
#include "cpu/isa.h"
#include "cpu/kv_pool.h"
#include "engine/ids.h"

namespace ferrite {

// Query rows that share each load of K and V: few for decoding; for prefill as many as AVX-512's
// registers hold.
inline constexpr int kFewRows = 4;
inline constexpr int kManyRows = 12;

struct AttentionTile;
using Attend = void (*)(const AttentionTile& tile, KvPool* kv);

// One work item: query rows of one sequence and kv head. When there are fewer than the kernel
// takes, the last one stands in for the rest and is written once.
struct AttentionTile {
  const float* query[kManyRows];  // [head_dim]
  int32_t begin[kManyRows];       // keys the row sees, from
  int32_t end[kManyRows];         // ... to, excluded
  void* out[kManyRows];           // [head_dim]
  int num_rows = 0;
  const BlockId* block_table = nullptr;
  int32_t layer = 0;
  int32_t kv_head = 0;
  // What this thread computes next, or null: its first keys are fetched meanwhile.
  const AttentionTile* next = nullptr;
  Attend attend = nullptr;       // what takes this many rows
  float* queries = nullptr;      // scratch, see Attention
  float* weights = nullptr;      // [kRows, AttentionChunkWidth()]
  float* accumulator = nullptr;  // [kRows, value_stride]
};

// Scores of one row that AttentionTile::weights has room for: keys between two updates of the
// softmax, padding included.
int32_t AttentionChunkWidth(const KvGeometry& geometry);

// For kFewRows rows or, if `many`, kManyRows, which only AVX-512 takes. `isa` must not exceed
// BestIsa().
Attend ChooseAttend(Isa isa, ComputeType kv_type, ComputeType out_type, bool many);

}  // namespace ferrite

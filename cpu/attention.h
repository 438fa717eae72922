// Causal attention of ragged query rows over the paged KV cache.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "cpu/aligned_buffer.h"
#include "cpu/kv_pool.h"
#include "cpu/thread_pool.h"
#include "engine/batch.h"

namespace ferrite {

// Work is cut into (sequence, kv head, a few query rows), whatever mix of prefill and decoding the
// batch is. A query row meets the cache chunk by chunk with an online softmax, chunks beginning at
// fixed positions, so its result depends on neither its neighbours nor how the prompt was cut.
class Attention {
 public:
  static absl::StatusOr<Attention> Create(const KvGeometry& geometry, int32_t num_heads,
                                          int32_t max_sequences, int32_t num_threads);

  // qkv: [T, num_heads + 2 * kv_heads, head_dim] fp32, of which q is read. block_tables:
  // [max_sequences, table_stride]. window: how many keys a query sees, itself and those just
  // before it; 0: all. out: [T, num_heads * head_dim] of `out_type`. The K and V of the step's own
  // tokens must be in the pool.
  void Run(const Batch& batch, std::span<const BlockId> block_tables, int64_t table_stride,
           int32_t layer, int32_t window, const float* qkv, KvPool* kv, ThreadPool* pool,
           ComputeType out_type, void* out);

 private:
  int32_t num_heads_ = 0;
  int32_t max_rows_ = 0;             // of a work item
  std::vector<int64_t> first_item_;  // [S+1] work items before each sequence
  // [num_threads] each
  std::vector<AlignedBuffer<float>> queries_;      // [head_dim, max_rows]
  std::vector<AlignedBuffer<float>> weights_;      // [max_rows, chunk_width]
  std::vector<AlignedBuffer<float>> accumulator_;  // [max_rows, value_stride]
};

}  // namespace ferrite

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
// batch is. A query row meets the cache block by block with an online softmax, so its result
// depends on neither its neighbours nor how the prompt was cut into chunks.
class Attention {
 public:
  static absl::StatusOr<Attention> Create(const KvGeometry& geometry, int32_t num_heads,
                                          int32_t max_sequences, int32_t num_threads);

  // qkv: [T, num_heads + 2 * kv_heads, head_dim] fp32, of which q is read. block_tables:
  // [max_sequences, table_stride]. out: [T, num_heads * head_dim] in the pool's type. The K and V
  // of the step's own tokens must be in the pool.
  void Run(const Batch& batch, std::span<const BlockId> block_tables, int64_t table_stride,
           int32_t layer, const float* qkv, KvPool* kv, ThreadPool* pool, void* out);

 private:
  int32_t num_heads_ = 0;
  std::vector<int64_t> first_item_;                // [S+1] work items before each sequence
  std::vector<AlignedBuffer<float>> accumulator_;  // [num_threads] of [rows, value_stride]
  std::vector<AlignedBuffer<float>> weights_;      // [num_threads] of [rows, key_groups * 16]
};

}  // namespace ferrite

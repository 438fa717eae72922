// Causal attention over the paged KV cache, for ragged batches.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/kernel_types.h"

namespace ferrite {

// How raw heads, as projected, become those that attention reads: as PrepareHeadsArguments says
// (prepare_heads.h), at position kv_len - 1.
struct HeadPreparation {
  const float* raw = nullptr;      // [T, num_heads + 2 kv_heads, head_dim] fp32
  const float* cosines = nullptr;  // [max_positions, head_dim / 2] fp32
  const float* sines = nullptr;
  const float* q_norm = nullptr;  // [head_dim] fp32, or null
  const float* k_norm = nullptr;
  float epsilon = 0;
};

// Everything but sizes is in device memory, so that a captured graph serves any step. K and V of
// the step's own tokens are in the cache already, unless `prepares`.
struct AttentionArguments {
  GpuType type = GpuType::kFp16;
  const void* qkv = nullptr;  // [T, num_heads + 2 kv_heads, head_dim], of which q is read
  void* k_cache = nullptr;    // [num_blocks, kv_heads, block_size, head_dim] of the layer
  void* v_cache = nullptr;    // written only if `prepares`
  const int32_t* block_tables = nullptr;  // [max_sequences, blocks_per_slot]
  int32_t blocks_per_slot = 0;
  const int32_t* seq_slots = nullptr;  // [S] rows of block_tables; -1: no sequence, nothing done
  const int32_t* kv_lens = nullptr;    // [S] keys once this step's are in
  const int32_t* cu_seqlens =
      nullptr;                 // [S+1] sequence s owns rows [cu_seqlens[s], cu_seqlens[s+1])
  int32_t first_sequence = 0;  // only sequences [first_sequence, first + num_sequences)
  int32_t num_sequences = 0;
  int32_t num_heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;    // 64, 80, 96, 128 or 256; any other up to 256 is served slowly
  int32_t block_size = 0;  // a multiple of 16; any other is served slowly
  int32_t window = 0;      // keys a query sees, itself and those just before it; 0: all
  float scale = 0;         // of the scores
  void* out = nullptr;     // [T, num_heads, head_dim]
  // Whether all of the above except q, and the newest key and value of each sequence, was written
  // before a launch that did not overlap: decodes then start reading during the kernel before.
  bool inputs_settled = false;
  // Decodes only, of settled inputs and where CanPrepareHeads: `preparation` has the heads, qkv is
  // not used, and the newest keys and values are written to the cache.
  bool prepares = false;
  HeadPreparation preparation;
  float* workspace = nullptr;  // DecodePlan::workspace_bytes; its contents need not be kept
};

// Sequences of one token each. Contexts are split over `num_splits` blocks a (sequence, kv head),
// as in Flash-Decoding (https://pytorch.org/blog/flash-decoding); how much of a context each split
// takes is worked out on the device from kv_lens, and merged in a fixed order.
struct DecodePlan {
  int32_t num_splits = 1;
  bool wide = false;  // blocks are few enough to have a multiprocessor each
  size_t workspace_bytes = 0;
};
// The split count for a batch of contexts up to max_kv_len.
DecodePlan PlanDecodeAttention(int32_t num_sequences, int32_t num_heads, int32_t kv_heads,
                               int32_t head_dim, int32_t max_kv_len, int32_t num_multiprocessors);
// Whether DecodeAttention can prepare heads of these sizes by itself.
bool CanPrepareHeads(int32_t head_dim, int32_t block_size);
cudaError_t DecodeAttention(const AttentionArguments& arguments, const DecodePlan& plan,
                            cudaStream_t stream);

// Sequences of any number of tokens, at most `num_tokens` together (which bounds the grid): row r
// of a sequence's q rows sees keys [0, kv_len - q + r]. FlashAttention-2
// (arxiv.org/abs/2307.08691), the query heads of one kv head as rows of one tile.
cudaError_t PrefillAttention(const AttentionArguments& arguments, int32_t num_tokens,
                             cudaStream_t stream);

// The same as the two above, but such that a row's result is the same in every bit whatever else is
// in the batch and however its sequence was cut into steps: both work out segments of keys at fixed
// positions, and fold them in one order. `prepares` is not served.
struct FixedDecodePlan {
  int32_t max_segments = 1;  // of a context
  size_t workspace_bytes = 0;
  size_t counters = 0;  // int32 each, 0 before the first use; every use leaves them 0
};
FixedDecodePlan PlanFixedDecodeAttention(int32_t num_sequences, int32_t num_heads, int32_t kv_heads,
                                         int32_t head_dim, int32_t max_kv_len);
cudaError_t FixedDecodeAttention(const AttentionArguments& arguments, const FixedDecodePlan& plan,
                                 int32_t* counters, cudaStream_t stream);
cudaError_t FixedPrefillAttention(const AttentionArguments& arguments, int32_t num_tokens,
                                  cudaStream_t stream);

}  // namespace ferrite

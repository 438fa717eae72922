#include "cuda/step_inputs.h"

#include <algorithm>
#include <cstring>

namespace ferrite {

StepInputs StepInputs::At(int32_t* base, const StepShape& shape) {
  const auto take = [&base](int32_t size) {
    int32_t* array = base;
    base += size;
    return array;
  };
  StepInputs inputs;
  inputs.token_ids = take(shape.tokens);
  inputs.positions = take(shape.tokens);
  inputs.slot_mapping = take(shape.tokens);
  inputs.cu_seqlens = take(shape.sequences + 1);
  inputs.kv_lens = take(shape.sequences);
  inputs.seq_slots = take(shape.sequences);
  inputs.input_rows = take(shape.sequences);
  inputs.sample_tokens = take(shape.samples);
  inputs.row_slots = take(shape.samples);
  inputs.output_indices = take(shape.samples);
  inputs.scored_tokens = take(shape.scored);
  inputs.scored_next = take(shape.scored);
  inputs.scored_top = take(shape.scored);
  inputs.pool_items = reinterpret_cast<PoolItem*>(take(shape.pooled * StepShape::kPoolItemWords));
  return inputs;
}

void FillStepInputs(const Batch& batch, std::span<const PoolItem> pool_items,
                    const StepShape& shape, const StepInputs& inputs) {
  const int32_t tokens = batch.num_tokens();
  const int32_t sequences = batch.num_sequences();
  const int32_t samples = batch.num_samples();
  std::copy_n(batch.token_ids.begin(), tokens, inputs.token_ids);
  std::copy_n(batch.positions.begin(), tokens, inputs.positions);
  std::copy_n(batch.slot_mapping.begin(), tokens, inputs.slot_mapping);
  std::copy_n(batch.cu_seqlens.begin(), sequences + 1, inputs.cu_seqlens);
  std::copy_n(batch.kv_lens.begin(), sequences, inputs.kv_lens);
  std::copy_n(batch.input_rows.begin(), sequences, inputs.input_rows);
  for (int32_t s = 0; s < sequences; ++s) {
    inputs.seq_slots[s] = batch.seq_slots[s].value;
  }
  for (int32_t r = 0; r < samples; ++r) {
    const int32_t sequence = batch.sample_seqs[r];
    inputs.sample_tokens[r] = batch.cu_seqlens[sequence + 1] - 1;
    inputs.row_slots[r] = batch.seq_slots[sequence].value;
    inputs.output_indices[r] = batch.output_indices[r];
  }
  for (size_t i = 0; i < batch.scored.size(); ++i) {
    inputs.scored_tokens[i] = batch.scored[i].token;
    inputs.scored_next[i] = batch.scored[i].next;
    inputs.scored_top[i] = batch.scored[i].num_top;
  }
  if (!pool_items.empty()) {
    std::memcpy(inputs.pool_items, pool_items.data(), pool_items.size_bytes());
  }
  // A padded token reads the embedding of token 0 and computes something that nobody sees.
  for (int32_t t = tokens; t < shape.tokens; ++t) {
    inputs.token_ids[t] = 0;
    inputs.positions[t] = 0;
    inputs.slot_mapping[t] = -1;
  }
  for (int32_t s = sequences; s < shape.sequences; ++s) {
    inputs.cu_seqlens[s + 1] = inputs.cu_seqlens[s] + 1;
    inputs.kv_lens[s] = 0;
    inputs.seq_slots[s] = -1;
    inputs.input_rows[s] = -1;
  }
  for (int32_t r = samples; r < shape.samples; ++r) {
    inputs.sample_tokens[r] = 0;
    inputs.row_slots[r] = -1;
    inputs.output_indices[r] = 0;
  }
}

}  // namespace ferrite

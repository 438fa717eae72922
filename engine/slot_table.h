// What the backend keeps for each sequence slot, and the check that a batch agrees with it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/backend.h"
#include "engine/batch.h"
#include "engine/pooling.h"
#include "engine/sampling_params.h"

namespace ferrite {

// Thread-compatible.
class SlotTable {
 public:
  // Of `info`, the pool's, the slots' and the steps' bounds, and vocab_size.
  explicit SlotTable(const BackendInfo& info);

  // Takes over the batch's slot assignments and block table changes. InternalError names an entry
  // that is out of range.
  absl::Status Apply(const Batch& batch);

  // InternalError names the first of the batch's invariants that does not hold: sizes that
  // disagree, ids out of range, positions or slot_mapping that disagree with kv_lens or the block
  // tables, what cannot be scored or pooled. `previous_samples` bounds input_rows.
  absl::Status Check(const Batch& batch, int32_t previous_samples);

  // [max_sequences, blocks_per_slot()]
  std::span<const BlockId> block_tables() const { return block_tables_; }
  int32_t blocks_per_slot() const { return blocks_per_slot_; }
  const SamplingParams& params(SeqSlot slot) const { return params_[slot.value]; }
  Pooling pooling(SeqSlot slot) const { return pooling_[slot.value]; }

 private:
  absl::Status CheckSizes(const Batch& batch) const;
  absl::Status CheckSequence(const Batch& batch, int32_t s, int32_t previous_samples);
  absl::Status CheckTokens(const Batch& batch, int32_t s) const;
  absl::Status CheckSamples(const Batch& batch);
  absl::Status CheckScored(const Batch& batch) const;
  absl::Status CheckPooled(const Batch& batch);

  BackendInfo info_;
  int32_t blocks_per_slot_;
  std::vector<BlockId> block_tables_;
  std::vector<SamplingParams> params_;  // [max_sequences]
  std::vector<Pooling> pooling_;        // [max_sequences]
  std::vector<uint64_t> seen_in_;       // [max_sequences] the last check that saw the slot
  std::vector<uint64_t> ended_in_;      // [max_sequences] the last that saw it sampled or pooled
  uint64_t check_ = 0;
};

}  // namespace ferrite

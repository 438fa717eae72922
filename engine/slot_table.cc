#include "engine/slot_table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// Nothing is formatted unless something is wrong: this runs for every token of every step.
template <typename... Parts>
absl::Status BadBatch(const Batch& batch, const Parts&... parts) {
  return absl::InternalError(absl::StrCat("step ", batch.step, ": ", parts...));
}

bool InRange(int64_t value, int64_t size) { return value >= 0 && value < size; }

}  // namespace

SlotTable::SlotTable(const BackendInfo& info)
    : info_(info),
      blocks_per_slot_((info.max_sequence_length + info.block_size - 1) / info.block_size),
      block_tables_(static_cast<size_t>(int64_t{info.max_sequences} * blocks_per_slot_)),
      params_(info.max_sequences),
      pooling_(info.max_sequences),
      seen_in_(info.max_sequences),
      ended_in_(info.max_sequences) {}

absl::Status SlotTable::Apply(const Batch& batch) {
  for (const SlotAssignment& assignment : batch.slot_assignments) {
    const int32_t slot = assignment.slot.value;
    if (!InRange(slot, info_.max_sequences) || assignment.params == nullptr) {
      return BadBatch(batch, "slot_assignments has slot ", slot, " of ", info_.max_sequences,
                      assignment.params == nullptr ? " without params" : "");
    }
    const int32_t num_logprobs = assignment.params->num_logprobs;
    if (num_logprobs < -1 || num_logprobs > SamplingParams::kMaxLogprobs) {
      return BadBatch(batch, "slot ", slot, " asks for ", num_logprobs, " logprobs; the most are ",
                      SamplingParams::kMaxLogprobs);
    }
    params_[slot] = *assignment.params;
    pooling_[slot] = assignment.pooling;
    std::fill_n(block_tables_.begin() + int64_t{slot} * blocks_per_slot_, blocks_per_slot_,
                BlockId{});
  }
  for (const BlockTableChange& change : batch.block_table_changes) {
    if (!InRange(change.slot.value, info_.max_sequences) ||
        !InRange(change.index, blocks_per_slot_) ||
        !InRange(change.block.value, info_.num_blocks)) {
      return BadBatch(batch, "block_table_changes sets entry ", change.index, " (of ",
                      blocks_per_slot_, ") of slot ", change.slot.value, " (of ",
                      info_.max_sequences, ") to block ", change.block.value, " (of ",
                      info_.num_blocks, ")");
    }
    block_tables_[int64_t{change.slot.value} * blocks_per_slot_ + change.index] = change.block;
  }
  return absl::OkStatus();
}

absl::Status SlotTable::Check(const Batch& batch, int32_t previous_samples) {
  RETURN_IF_ERROR(CheckSizes(batch));
  ++check_;
  for (int32_t s = 0; s < batch.num_sequences(); ++s) {
    RETURN_IF_ERROR(CheckSequence(batch, s, previous_samples));
    RETURN_IF_ERROR(CheckTokens(batch, s));
  }
  RETURN_IF_ERROR(CheckSamples(batch));
  RETURN_IF_ERROR(CheckScored(batch));
  return CheckPooled(batch);
}

absl::Status SlotTable::CheckSizes(const Batch& batch) const {
  const auto tokens = static_cast<size_t>(batch.num_tokens());
  const auto sequences = static_cast<size_t>(batch.num_sequences());
  if (batch.token_ids.size() != tokens || batch.slot_mapping.size() != tokens) {
    return BadBatch(batch, "positions, token_ids and slot_mapping have ", tokens, ", ",
                    batch.token_ids.size(), " and ", batch.slot_mapping.size(), " entries");
  }
  if (batch.cu_seqlens.size() != sequences + 1 || batch.kv_lens.size() != sequences ||
      batch.input_rows.size() != sequences) {
    return BadBatch(batch, "seq_slots, cu_seqlens, kv_lens and input_rows have ", sequences, ", ",
                    batch.cu_seqlens.size(), ", ", batch.kv_lens.size(), " and ",
                    batch.input_rows.size(), " entries");
  }
  if (batch.output_indices.size() != batch.sample_seqs.size()) {
    return BadBatch(batch, "sample_seqs and output_indices have ", batch.sample_seqs.size(),
                    " and ", batch.output_indices.size(), " entries");
  }
  const auto most = std::max(sequences, batch.sample_seqs.size());
  if (batch.num_tokens() > info_.max_step_tokens || most > size_t(info_.max_sequences)) {
    return BadBatch(batch, tokens, " tokens, ", sequences, " sequences, ", batch.sample_seqs.size(),
                    " samples; the most are ", info_.max_step_tokens, ", ", info_.max_sequences,
                    " and ", info_.max_sequences);
  }
  if (batch.cu_seqlens.front() != 0 || batch.cu_seqlens.back() != batch.num_tokens()) {
    return BadBatch(batch, "cu_seqlens goes from ", batch.cu_seqlens.front(), " to ",
                    batch.cu_seqlens.back(), ", not from 0 to ", tokens);
  }
  return absl::OkStatus();
}

absl::Status SlotTable::CheckSequence(const Batch& batch, int32_t s, int32_t previous_samples) {
  const int64_t count = int64_t{batch.cu_seqlens[s + 1]} - batch.cu_seqlens[s];
  if (count < 1 || batch.cu_seqlens[s + 1] > batch.num_tokens()) {
    return BadBatch(batch, "cu_seqlens gives sequence ", s, " ", count, " tokens");
  }
  const int32_t slot = batch.seq_slots[s].value;
  if (!InRange(slot, info_.max_sequences)) {
    return BadBatch(batch, "seq_slots[", s, "] is ", slot, " of ", info_.max_sequences);
  }
  if (seen_in_[slot] == check_) {
    return BadBatch(batch, "seq_slots has slot ", slot, " twice");
  }
  seen_in_[slot] = check_;
  if (batch.kv_lens[s] < count || batch.kv_lens[s] > info_.max_sequence_length) {
    return BadBatch(batch, "kv_lens[", s, "] is ", batch.kv_lens[s], " with ", count,
                    " new tokens; the longest sequence is ", info_.max_sequence_length);
  }
  const int32_t input_row = batch.input_rows[s];
  if (input_row != -1 && (count != 1 || !InRange(input_row, previous_samples))) {
    return BadBatch(batch, "input_rows[", s, "] is ", input_row, " for ", count,
                    " tokens; the previous step has ", previous_samples, " rows");
  }
  const BlockId* table = block_tables_.data() + int64_t{slot} * blocks_per_slot_;
  const int32_t num_blocks = (batch.kv_lens[s] + info_.block_size - 1) / info_.block_size;
  for (int32_t i = 0; i < num_blocks; ++i) {
    if (table[i].value < 0) {
      return BadBatch(batch, "slot ", slot, " has no block ", i, " for its ", batch.kv_lens[s],
                      " tokens");
    }
  }
  return absl::OkStatus();
}

absl::Status SlotTable::CheckTokens(const Batch& batch, int32_t s) const {
  const BlockId* table =
      block_tables_.data() + int64_t{batch.seq_slots[s].value} * blocks_per_slot_;
  const int32_t end = batch.cu_seqlens[s + 1];
  for (int32_t t = batch.cu_seqlens[s]; t < end; ++t) {
    const int32_t position = batch.kv_lens[s] - (end - t);
    if (batch.positions[t] != position) {
      return BadBatch(batch, "positions[", t, "] is ", batch.positions[t], ", but kv_lens[", s,
                      "] makes it ", position);
    }
    const int64_t row = int64_t{table[position / info_.block_size].value} * info_.block_size +
                        position % info_.block_size;
    if (batch.slot_mapping[t] != row) {
      return BadBatch(batch, "slot_mapping[", t, "] is ", batch.slot_mapping[t], ", but slot ",
                      batch.seq_slots[s].value, "'s block table makes it ", row);
    }
    if (batch.input_rows[s] == -1 && !InRange(batch.token_ids[t], info_.vocab_size)) {
      return BadBatch(batch, "token_ids[", t, "] is ", batch.token_ids[t], " of ",
                      info_.vocab_size);
    }
  }
  return absl::OkStatus();
}

absl::Status SlotTable::CheckSamples(const Batch& batch) {
  for (int32_t r = 0; r < batch.num_samples(); ++r) {
    if (!InRange(batch.sample_seqs[r], batch.num_sequences()) || batch.output_indices[r] < 0) {
      return BadBatch(batch, "sample_seqs[", r, "] is ", batch.sample_seqs[r], " of ",
                      batch.num_sequences(), ", output_indices[", r, "] is ",
                      batch.output_indices[r]);
    }
    ended_in_[batch.seq_slots[batch.sample_seqs[r]].value] = check_;
  }
  return absl::OkStatus();
}

absl::Status SlotTable::CheckScored(const Batch& batch) const {
  int32_t before = -1;
  for (size_t i = 0; i < batch.scored.size(); ++i) {
    const ScoredToken& scored = batch.scored[i];
    if (scored.token <= before || scored.token >= batch.num_tokens()) {
      return BadBatch(batch, "scored[", i, "] is token ", scored.token, " of ", batch.num_tokens(),
                      ", after ", before);
    }
    if (!InRange(scored.next, info_.vocab_size) ||
        !InRange(scored.num_top, SamplingParams::kMaxLogprobs + 1)) {
      return BadBatch(batch, "scored[", i, "] has next token ", scored.next, " of ",
                      info_.vocab_size, " and asks for ", scored.num_top,
                      " likeliest; the most are ", SamplingParams::kMaxLogprobs);
    }
    before = scored.token;
  }
  return absl::OkStatus();
}

absl::Status SlotTable::CheckPooled(const Batch& batch) {
  for (size_t i = 0; i < batch.pooled_seqs.size(); ++i) {
    const int32_t sequence = batch.pooled_seqs[i];
    if (!InRange(sequence, batch.num_sequences())) {
      return BadBatch(batch, "pooled_seqs[", i, "] is ", sequence, " of ", batch.num_sequences());
    }
    const int32_t slot = batch.seq_slots[sequence].value;
    if (pooling_[slot] == Pooling::kNone) {
      return BadBatch(batch, "pooled_seqs[", i, "] is in slot ", slot, ", which has no pooling");
    }
    if (ended_in_[slot] == check_) {
      return BadBatch(batch, "pooled_seqs[", i, "] is ", sequence,
                      ", which is sampled or pooled already");
    }
    ended_in_[slot] = check_;
  }
  return absl::OkStatus();
}

}  // namespace ferrite

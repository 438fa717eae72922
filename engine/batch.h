// One step's work for a backend, flat and ragged as varlen kernels want it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/ids.h"
#include "engine/pooling.h"
#include "engine/sampling_params.h"

namespace ferrite {

// A sequence has taken a slot: the backend replaces everything it kept for that slot.
struct SlotAssignment {
  SeqSlot slot;
  const SamplingParams* params;  // valid until Launch returns
  // Those of the sequence so far, prompt first; valid until Launch returns. What is sampled for the
  // slot from then on, the backend counts itself.
  std::span<const TokenId> tokens = {};
  int32_t num_prompt_tokens = 0;
  Pooling pooling = Pooling::kNone;
};

// A token of the step whose next token is known already, and the log-probability of that one is
// wanted, with those of the `num_top` likeliest.
struct ScoredToken {
  int32_t token = 0;  // index into the step's T tokens; rising from entry to entry
  TokenId next = 0;
  int32_t num_top = 0;  // at most SamplingParams::kMaxLogprobs
};

// Entry `index` of a slot's block table has become `block`.
struct BlockTableChange {
  SeqSlot slot;
  int32_t index;
  BlockId block;
};

// T tokens of S sequences, R of which sample a token. Sampling parameters and block tables live in
// the backend, indexed by slot; a Batch carries only what changed since the step before. The
// vectors are reused from step to step and keep their capacity.
struct Batch {
  uint64_t step = 0;  // counts from 1

  std::vector<TokenId> token_ids;     // [T]; ignored where the sequence's input_row is not -1
  std::vector<int32_t> positions;     // [T]
  std::vector<int32_t> slot_mapping;  // [T] block * block_size + offset, where K and V are written

  std::vector<int32_t> cu_seqlens;  // [S+1] sequence s owns tokens [cu_seqlens[s], cu_seqlens[s+1])
  std::vector<int32_t> kv_lens;     // [S] tokens in the KV cache once this step has run
  std::vector<SeqSlot> seq_slots;   // [S]
  // [S] The sample row of the previous launched step whose token is this sequence's input, or -1
  // if token_ids has it. Only sequences with exactly one token may name a row.
  std::vector<int32_t> input_rows;

  std::vector<int32_t> sample_seqs;     // [R] sequences whose last token's logits are sampled
  std::vector<int32_t> output_indices;  // [R] how many tokens the sequence had generated before

  std::vector<ScoredToken> scored;  // [P]; no row of sample_seqs, whose next token is not known yet
  // [E] Sequences of a slot with pooling whose last token this step has. Such sequences sample and
  // score nothing, and their tokens count towards their pooled vector from position 0 on.
  std::vector<int32_t> pooled_seqs;

  std::vector<SlotAssignment> slot_assignments;
  std::vector<BlockTableChange> block_table_changes;

  int32_t num_tokens() const { return static_cast<int32_t>(positions.size()); }
  int32_t num_sequences() const { return static_cast<int32_t>(seq_slots.size()); }
  int32_t num_samples() const { return static_cast<int32_t>(sample_seqs.size()); }
  bool empty() const { return positions.empty(); }

  void Clear() {
    token_ids.clear();
    positions.clear();
    slot_mapping.clear();
    cu_seqlens.assign(1, 0);
    kv_lens.clear();
    seq_slots.clear();
    input_rows.clear();
    sample_seqs.clear();
    output_indices.clear();
    scored.clear();
    pooled_seqs.clear();
    slot_assignments.clear();
    block_table_changes.clear();
  }
};

// The natural logarithm of the softmax of the raw logits (fp32, before temperature, barred tokens
// and truncation), at `id`.
struct TokenLogprob {
  TokenId id = 0;
  float logprob = 0;
};

// Of one token: its own, and those of the likeliest in its place, likeliest first, ties by id.
struct LogprobView {
  float own = 0;
  std::span<const TokenLogprob> top;
};

// Log-probabilities of any number of tokens. Keeps its capacity.
struct LogprobList {
  std::vector<float> own;
  std::vector<int32_t> top_offsets;  // entry t owns top[top_offsets[t]] to top[top_offsets[t+1]]
  std::vector<TokenLogprob> top;

  bool empty() const { return own.empty(); }
  int32_t size() const { return static_cast<int32_t>(own.size()); }
  LogprobView operator[](int32_t t) const {
    return {own[t], std::span(top).subspan(top_offsets[t], top_offsets[t + 1] - top_offsets[t])};
  }
  void Append(float own_logprob, std::span<const TokenLogprob> likeliest) {
    if (top_offsets.empty()) {
      top_offsets.push_back(0);
    }
    own.push_back(own_logprob);
    top.insert(top.end(), likeliest.begin(), likeliest.end());
    top_offsets.push_back(static_cast<int32_t>(top.size()));
  }
  void Reserve(int32_t num_tokens, int32_t num_top) {
    own.reserve(num_tokens);
    top_offsets.reserve(size_t{1} + num_tokens);
    top.reserve(int64_t{num_tokens} * num_top);
  }
  void Clear() {
    own.clear();
    top_offsets.clear();
    top.clear();
  }
};

// What one step produced. Row r of the batch's sample rows owns
// tokens [row_offsets[r], row_offsets[r+1]): 0..k of them, so that there is room for speculation.
struct StepResult {
  uint64_t step = 0;
  std::vector<int32_t> row_offsets;  // [R+1]
  std::vector<TokenId> token_ids;    // [row_offsets[R]]
  // Of token_ids, with as many likeliest as SamplingParams::num_logprobs says (no more than the
  // vocabulary has); NaN and none for a token whose sequence does not ask; empty if none does.
  LogprobList logprobs;
  LogprobList scores;         // of Batch::scored
  std::vector<float> pooled;  // [E, hidden_size], as Pooling says
  bool replayed = false;      // the step was a graph captured before
};

}  // namespace ferrite

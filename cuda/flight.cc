#include "cuda/flight.h"

#include <algorithm>
#include <array>
#include <limits>
#include <span>
#include <utility>

#include "engine/status_macros.h"

namespace ferrite {
namespace {

// `wanted` likeliest tokens, or as many as there are; with -1 nothing.
void Append(const GpuRowLogprobs& from, int32_t wanted, int32_t vocab_size, LogprobList* list) {
  std::array<TokenLogprob, GpuRowLogprobs::kMaxTop> top;
  const int32_t size = std::clamp(wanted, 0, vocab_size);
  for (int32_t i = 0; i < size; ++i) {
    top[i] = {from.top_ids[i], from.top[i]};
  }
  list->Append(wanted >= 0 ? from.chosen : std::numeric_limits<float>::quiet_NaN(),
               std::span(top).first(size));
}

}  // namespace

absl::StatusOr<Flight> Flight::Create(const BackendInfo& info, const StepShape& most,
                                      int64_t table_changes, int device) {
  const int64_t sequences = info.max_sequences;
  Flight flight;
  ASSIGN_OR_RETURN(flight.inputs, PinnedBuffer<int32_t>::Create(most.words(), "step inputs"));
  ASSIGN_OR_RETURN(flight.table_changes,
                   PinnedBuffer<TableChange>::Create(table_changes, "block table changes"));
  ASSIGN_OR_RETURN(flight.params,
                   PinnedBuffer<GpuSamplingParams>::Create(sequences, "sampling parameters"));
  ASSIGN_OR_RETURN(flight.param_slots, PinnedBuffer<int32_t>::Create(sequences, "step inputs"));
  ASSIGN_OR_RETURN(flight.tokens, PinnedBuffer<int32_t>::Create(sequences, "sampled tokens"));
  ASSIGN_OR_RETURN(flight.logprobs,
                   PinnedBuffer<GpuRowLogprobs>::Create(sequences, "log-probabilities"));
  ASSIGN_OR_RETURN(flight.scores, PinnedBuffer<GpuRowLogprobs>::Create(most.scored, "scores"));
  ASSIGN_OR_RETURN(flight.pooled,
                   PinnedBuffer<float>::Create(sequences * info.hidden_size, "pooled vectors"));
  flight.num_logprobs.reserve(sequences);
  flight.scored_top.reserve(most.scored);
  flight.pool_items.reserve(sequences);
  ASSIGN_OR_RETURN(Event done, Event::Create(device));
  flight.done = std::make_unique<Event>(std::move(done));
  return flight;
}

void Flight::Note(const Batch& batch, const SlotTable& slots) {
  step = batch.step;
  num_tokens = batch.num_tokens();
  num_sequences = batch.num_sequences();
  num_samples = batch.num_samples();
  num_logprobs.clear();
  any_logprobs = false;
  any_adjusted = false;
  for (const int32_t sequence : batch.sample_seqs) {
    const SamplingParams& asked = slots.params(batch.seq_slots[sequence]);
    num_logprobs.push_back(asked.num_logprobs);
    any_logprobs = any_logprobs || asked.num_logprobs >= 0;
    any_adjusted = any_adjusted || asked.adjusts_logits();
  }
  scored_top.clear();
  for (const ScoredToken& scored : batch.scored) {
    scored_top.push_back(scored.num_top);
  }
  NotePooling(batch, slots);
}

// A mean takes in every token of its sequence, the last token's vector is that token's alone.
void Flight::NotePooling(const Batch& batch, const SlotTable& slots) {
  pool_items.clear();
  max_pooled_tokens = 0;
  num_pooled = static_cast<int32_t>(batch.pooled_seqs.size());
  for (int32_t s = 0; s < num_sequences; ++s) {
    const SeqSlot slot = batch.seq_slots[s];
    if (slots.pooling(slot) == Pooling::kNone) {
      continue;
    }
    const auto row = std::find(batch.pooled_seqs.begin(), batch.pooled_seqs.end(), s);
    const bool ends = row != batch.pooled_seqs.end();
    const int32_t first = batch.cu_seqlens[s];
    const int32_t end = batch.cu_seqlens[s + 1];
    PoolItem item = {.first_token = first,
                     .num_tokens = end - first,
                     .slot = slot.value,
                     .adds = batch.positions[first] > 0 ? 1 : 0,
                     .out = ends ? static_cast<int32_t>(row - batch.pooled_seqs.begin()) : -1,
                     .divisor = batch.kv_lens[s]};
    if (slots.pooling(slot) == Pooling::kLast) {
      if (!ends) {
        continue;
      }
      item.first_token = end - 1;
      item.num_tokens = 1;
      item.adds = 0;
      item.divisor = 1;
    }
    max_pooled_tokens = std::max(max_pooled_tokens, item.num_tokens);
    pool_items.push_back(item);
  }
}

StepShape Flight::shape() const {
  return {.tokens = num_tokens,
          .sequences = num_sequences,
          .samples = num_samples,
          .scored = static_cast<int32_t>(scored_top.size()),
          .pooled = static_cast<int32_t>(pool_items.size())};
}

void Flight::Take(const BackendInfo& info, StepResult* result) const {
  result->step = step;
  result->token_ids.assign(tokens.data(), tokens.data() + num_samples);
  result->row_offsets.resize(num_samples + 1);
  for (int32_t row = 0; row <= num_samples; ++row) {
    result->row_offsets[row] = row;
  }
  result->logprobs.Clear();
  for (int32_t row = 0; any_logprobs && row < num_samples; ++row) {
    Append(logprobs.data()[row], num_logprobs[row], info.vocab_size, &result->logprobs);
  }
  result->scores.Clear();
  for (size_t i = 0; i < scored_top.size(); ++i) {
    Append(scores.data()[i], scored_top[i], info.vocab_size, &result->scores);
  }
  result->pooled.assign(pooled.data(), pooled.data() + int64_t{num_pooled} * info.hidden_size);
}

}  // namespace ferrite

// What of Scheduler decides what a step computes; scheduler.cc has what comes before and after.
#include <algorithm>
#include <cassert>

#include "engine/scheduler.h"

namespace ferrite {
namespace {

// Free blocks that a newcomer must leave to those that run, so that what they still generate does
// not preempt it: whom that hits matters little, how often it comes to that does. About three in a
// hundred; more holds newcomers up for longer than it saves (docs/performance.md).
int32_t Headroom(const BlockManager& blocks) { return 1 + blocks.num_blocks() / 32; }

// Where many decode, the step is long anyway, and the prompts among them must not starve: for each
// token that is decoded there is room for two of prompts.
constexpr int32_t kMixedTokensPerDecode = 3;

}  // namespace

int32_t SchedulerOptions::StepTokens(int32_t decodes) const {
  if (decodes == 0) {
    return max_step_tokens;
  }
  return std::min(max_step_tokens, std::max(mixed_step_tokens, kMixedTokensPerDecode * decodes));
}

void Scheduler::Plan(Clock::time_point now, Batch* batch) {
  assert(steps_outstanding_ < static_cast<int32_t>(planned_.size()));
  batch->Clear();
  EndStopped(now);

  batch_ = batch;
  batch->step = last_step_ + 1;
  budget_ = options_.max_step_tokens;  // which has room for all that decode
  scoring_budget_ = kMostScoringTokens;
  PlannedStep& planned = planned_[batch->step % planned_.size()];
  planned.step = batch->step;
  planned.sequences.clear();
  planned.sampled.clear();
  planned.scored.clear();
  planned.pooled.clear();

  PlanRunning(/*decodes=*/true);
  num_decoding_ = batch->num_sequences();
  budget_ = options_.StepTokens(num_decoding_) - num_decoding_;
  PlanRunning(/*decodes=*/false);
  Admit(now);
  if (!batch->empty()) {
    ++last_step_;
    ++steps_outstanding_;
  }
}

// Tokens that could be computed in this step: those known on the host, or the one that the
// outstanding step is sampling. None once the last token allowed is in flight.
int32_t Scheduler::TokensToCompute(const Sequence& sequence) const {
  const SchedulingState& state = sequence.scheduling;
  if (!sequence.pools() &&
      sequence.num_generated() + state.samples_in_flight >= sequence.request().max_new_tokens) {
    return 0;
  }
  return sequence.num_tokens() + state.samples_in_flight - state.num_computed;
}

int32_t Scheduler::TokensToPlan(const Sequence& sequence) const {
  const int32_t room =
      sequence.wants_prompt_logprobs() ? std::min(budget_, scoring_budget_) : budget_;
  return std::min(TokensToCompute(sequence), room);
}

// Whether all that is left to compute is the last token that it generated. The last token of a
// prompt is a chunk like any other.
bool Scheduler::Decodes(const Sequence& sequence) const {
  return TokensToCompute(sequence) == 1 &&
         sequence.scheduling.num_computed >= sequence.num_prompt_tokens();
}

void Scheduler::PlanRunning(bool decodes) {
  // Preemption takes sequences from the end, never one before the present index.
  for (size_t i = 0; i < running_.size() && budget_ > 0; ++i) {
    Sequence* const sequence = running_[i];
    if (sequence->scheduling.last_planned_step == batch_->step) {
      continue;
    }
    if (TokensToCompute(*sequence) == 0 || Decodes(*sequence) != decodes) {
      continue;
    }
    const int32_t granted = ReserveBlocks(sequence, TokensToPlan(*sequence));
    if (granted > 0) {
      PlanTokens(sequence, granted);
    }
  }
}

void Scheduler::Admit(Clock::time_point now) {
  while (budget_ > 0 && !free_slots_.empty()) {
    Sequence* const sequence = waiting_.Next(now, batch_->step);
    if (sequence == nullptr) {
      return;
    }
    const SharedPrefix shared = FindSharedPrefix(*sequence);
    if (shared.coming) {
      waiting_.PassOver(sequence, batch_->step);
      continue;
    }
    if (TokensToPlan(*sequence) < 1) {
      return;  // the next step has room for scoring again
    }
    int64_t needed = blocks_.BlocksFor(sequence->num_tokens()) -
                     static_cast<int64_t>(shared_.size()) + shared.free_blocks;
    if (!running_.empty()) {
      needed += BlocksPromised() + Headroom(blocks_);
    }
    if (needed > blocks_.num_free()) {
      return;
    }
    waiting_.Remove(sequence);
    Start(sequence, now);
  }
}

// Fills shared_ with the blocks that hold the sequence's beginning. Its last token is always
// computed: its logits give the next one.
Scheduler::SharedPrefix Scheduler::FindSharedPrefix(const Sequence& sequence) {
  SharedPrefix shared;
  shared_.clear();
  if (!sequence.takes_prefixes()) {
    return shared;
  }
  const std::span<const TokenId> tokens = sequence.tokens();
  const auto block_size = static_cast<size_t>(blocks_.block_size());
  Prefix prefix = RootPrefix(sequence.scheduling.prefix_root);
  for (size_t first = 0; first + block_size < tokens.size(); first += block_size) {
    const auto node = blocks_.FindPrefix(prefix, tokens.subspan(first, block_size));
    if (!node.has_value()) {
      break;
    }
    if (node->step == batch_->step) {  // cannot be read in the step that writes it
      shared.coming = true;
      break;
    }
    prefix = node->prefix;
    shared.free_blocks += blocks_.is_referenced(node->block) ? 0 : 1;
    shared_.push_back(*node);
  }
  return shared;
}

// Starts it with the blocks in shared_.
void Scheduler::Start(Sequence* sequence, Clock::time_point now) {
  SchedulingState& state = sequence->scheduling;
  state.num_indexed = static_cast<int32_t>(shared_.size());
  state.num_computed = state.num_indexed * blocks_.block_size();
  state.prefix = shared_.empty() ? RootPrefix(state.prefix_root) : shared_.back().prefix;
  if (!sequence->started()) {
    sequence->MarkStarted(state.num_computed, now);
    observer_->OnLeftWaiting(*sequence);
  }
  state.phase = Phase::kRunning;
  waiting_.OnStarted(sequence);
  state.slot = free_slots_.back();
  free_slots_.pop_back();
  running_.insert(std::upper_bound(running_.begin(), running_.end(), sequence, RunsBefore()),
                  sequence);
  batch_->slot_assignments.push_back({.slot = state.slot,
                                      .params = &sequence->request().sampling,
                                      .tokens = sequence->tokens(),
                                      .num_prompt_tokens = sequence->num_prompt_tokens(),
                                      .pooling = sequence->request().pooling});
  for (const PrefixIndex::Node& node : shared_) {
    blocks_.AddReference(node.block);
    batch_->block_table_changes.push_back(
        {state.slot, static_cast<int32_t>(state.blocks.size()), node.block});
    state.blocks.push_back(node.block);
  }
  PlanTokens(sequence, ReserveBlocks(sequence, TokensToPlan(*sequence)));
}

// Blocks that running sequences still need for tokens they know already.
int64_t Scheduler::BlocksPromised() const {
  int64_t promised = 0;
  for (const Sequence* sequence : running_) {
    const auto held = static_cast<int32_t>(sequence->scheduling.blocks.size());
    promised += std::max(0, blocks_.BlocksFor(sequence->num_tokens()) - held);
  }
  return promised;
}

// Grows the block table for up to num_tokens more tokens, preempting younger sequences if it must.
// Returns for how many tokens there is room.
int32_t Scheduler::ReserveBlocks(Sequence* sequence, int32_t num_tokens) {
  SchedulingState& state = sequence->scheduling;
  const auto needed = static_cast<size_t>(blocks_.BlocksFor(state.num_computed + num_tokens));
  while (state.blocks.size() < needed) {
    if (const std::optional<BlockId> block = blocks_.Allocate()) {
      batch_->block_table_changes.push_back(
          {state.slot, static_cast<int32_t>(state.blocks.size()), *block});
      state.blocks.push_back(*block);
    } else if (!PreemptFor(*sequence)) {
      break;
    }
  }
  const auto room = static_cast<int32_t>(state.blocks.size()) * blocks_.block_size();
  return std::min(num_tokens, room - state.num_computed);
}

// Preempts the youngest running sequence behind `sequence` that is not in the step yet. Returns
// whether that freed blocks at once; those of a sequence in flight come with a later step.
bool Scheduler::PreemptFor(const Sequence& sequence) {
  if (!leaving_.empty()) {
    return false;  // their blocks are on the way
  }
  for (auto it = running_.rbegin(); it != running_.rend() && *it != &sequence; ++it) {
    Sequence* const victim = *it;
    if (victim->scheduling.last_planned_step != batch_->step) {
      ++num_preemptions_;
      LeaveRunning(victim, Phase::kPreempting);
      FreeLeaving();
      return leaving_.empty();
    }
  }
  return false;
}

void Scheduler::PlanTokens(Sequence* sequence, int32_t num_tokens) {
  SchedulingState& state = sequence->scheduling;
  PlannedStep& planned = planned_[batch_->step % planned_.size()];
  const EngineRequest& request = sequence->request();
  const int32_t first = state.num_computed;
  const bool from_device = first == sequence->num_tokens();
  if (sequence->wants_prompt_logprobs()) {
    scoring_budget_ -= num_tokens;
  }
  for (int32_t position = first; position < first + num_tokens; ++position) {
    const BlockId block = state.blocks[position / blocks_.block_size()];
    if (sequence->wants_prompt_logprobs() && position >= sequence->num_prompt_logprobs() &&
        position + 1 < sequence->num_prompt_tokens()) {
      batch_->scored.push_back({.token = batch_->num_tokens(),
                                .next = request.prompt[position + 1],
                                .num_top = request.num_prompt_logprobs});
      planned.scored.push_back(sequence);
    }
    batch_->token_ids.push_back(from_device ? 0 : sequence->tokens()[position]);
    batch_->positions.push_back(position);
    batch_->slot_mapping.push_back(block.value * blocks_.block_size() +
                                   position % blocks_.block_size());
  }
  batch_->cu_seqlens.push_back(batch_->num_tokens());
  batch_->kv_lens.push_back(first + num_tokens);
  batch_->seq_slots.push_back(state.slot);
  batch_->input_rows.push_back(from_device ? state.sample_row : -1);

  if (first + num_tokens < sequence->num_tokens() + state.samples_in_flight) {
    // Tokens are left for later steps.
  } else if (sequence->pools()) {
    batch_->pooled_seqs.push_back(batch_->num_sequences() - 1);
    planned.pooled.push_back(sequence);
  } else {
    batch_->sample_seqs.push_back(batch_->num_sequences() - 1);
    batch_->output_indices.push_back(sequence->num_generated() + state.samples_in_flight);
    state.sample_row = static_cast<int32_t>(planned.sampled.size());
    ++state.samples_in_flight;
    planned.sampled.push_back(sequence);
  }
  planned.sequences.push_back(sequence);
  state.num_computed = first + num_tokens;
  state.last_planned_step = batch_->step;
  ++state.steps_outstanding;
  budget_ -= num_tokens;
  ShareBlocks(sequence);
}

// Lets others find the blocks that are full, by the steps planned so far, of tokens that are known.
// What the device samples is known once it is accepted: nothing after a sequence's end is shared.
void Scheduler::ShareBlocks(Sequence* sequence) {
  SchedulingState& state = sequence->scheduling;
  if (state.prefix_root == 0) {
    return;
  }
  const std::span<const TokenId> tokens = sequence->tokens();
  const int32_t block_size = blocks_.block_size();
  const int32_t full = std::min(state.num_computed, sequence->num_tokens()) / block_size;
  for (; state.num_indexed < full; ++state.num_indexed) {
    state.prefix = blocks_.AddPrefix(
        state.blocks[state.num_indexed], state.prefix,
        tokens.subspan(static_cast<size_t>(state.num_indexed) * block_size, block_size),
        state.last_planned_step, state.keep_prefix);
  }
}

}  // namespace ferrite

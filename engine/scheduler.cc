#include "engine/scheduler.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// Free blocks that a newcomer must leave to those that run, so that admitting it does not make the
// next step preempt: one in a hundred, at least one.
int32_t Headroom(const BlockManager& blocks) { return 1 + blocks.num_blocks() / 100; }

}  // namespace

bool Scheduler::RunsBefore::operator()(const Sequence* a, const Sequence* b) const {
  if (a->request().priority != b->request().priority) {
    return a->request().priority > b->request().priority;
  }
  return a->scheduling.arrival < b->scheduling.arrival;
}

Scheduler::Scheduler(const BackendInfo& backend, SchedulerOptions options, Observer* observer)
    : options_(options),
      hidden_size_(backend.hidden_size),
      observer_(observer),
      blocks_(backend.num_blocks, backend.block_size) {
  for (int32_t i = options.max_running - 1; i >= 0; --i) {
    free_slots_.push_back(SeqSlot{i});
  }
  running_.reserve(options.max_running);
  leaving_.reserve(options.max_running);
  to_notify_.reserve(options.max_running);
  for (PlannedStep& step : planned_) {
    step.sequences.reserve(options.max_running);
    step.sampled.reserve(options.max_running);
    step.pooled.reserve(options.max_running);
  }
}

void Scheduler::Add(std::unique_ptr<Sequence> sequence) {
  sequence->scheduling.arrival = arrivals_++;
  Sequence* const added = sequence.get();
  owned_.emplace(added, std::move(sequence));
  waiting_.insert(added);
}

void Scheduler::Plan(Clock::time_point now, Batch* batch) {
  assert(steps_outstanding_ < static_cast<int32_t>(planned_.size()));
  batch->Clear();
  EndStopped(now);

  batch_ = batch;
  batch->step = last_step_ + 1;
  budget_ = options_.max_step_tokens;
  PlannedStep& planned = planned_[batch->step % planned_.size()];
  planned.step = batch->step;
  planned.sequences.clear();
  planned.sampled.clear();
  planned.scored.clear();
  planned.pooled.clear();

  PlanRunning(/*decodes=*/true);
  PlanRunning(/*decodes=*/false);
  Admit(now);
  if (!batch->empty()) {
    ++last_step_;
    ++steps_outstanding_;
  }
}

void Scheduler::EndStopped(Clock::time_point now) {
  ended_.clear();
  const auto collect = [&](Sequence* sequence) {
    if (!sequence->finished() &&
        (sequence->stream()->stop_request() != TokenStream::StopRequest::kNone ||
         sequence->request().deadline <= now)) {
      ended_.push_back(sequence);
    }
  };
  std::for_each(running_.begin(), running_.end(), collect);
  std::for_each(leaving_.begin(), leaving_.end(), collect);
  std::for_each(waiting_.begin(), waiting_.end(), collect);
  for (Sequence* sequence : ended_) {
    switch (sequence->stream()->stop_request()) {
      case TokenStream::StopRequest::kAbort:
        End(sequence, absl::OkStatus(), FinishReason::kAborted, now);
        break;
      case TokenStream::StopRequest::kCancel:
        End(sequence, absl::CancelledError("the client cancelled the request"), FinishReason::kNone,
            now);
        break;
      case TokenStream::StopRequest::kNone:
        End(sequence, absl::DeadlineExceededError("the request's deadline passed"),
            FinishReason::kNone, now);
        break;
    }
  }
}

// Finishes the sequence's stream now; its memory follows when no step includes it.
void Scheduler::End(Sequence* sequence, const absl::Status& status, FinishReason reason,
                    Clock::time_point now) {
  if (sequence->EndWith(status, reason, now)) {
    to_notify_.push_back(sequence->stream());
  }
  observer_->OnFinished(*sequence);
  if (!sequence->started()) {
    observer_->OnLeftWaiting(*sequence);
  }
  switch (sequence->scheduling.phase) {
    case Phase::kWaiting:
      waiting_.erase(sequence);
      owned_.erase(sequence);
      break;
    case Phase::kRunning:
      LeaveRunning(sequence, Phase::kFinished);
      FreeLeaving();
      break;
    case Phase::kPreempting:
      sequence->scheduling.phase = Phase::kFinished;
      break;
    case Phase::kFinished:
      break;
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

void Scheduler::PlanRunning(bool decodes) {
  // Preemption takes sequences from the end, never one before the present index.
  for (size_t i = 0; i < running_.size() && budget_ > 0; ++i) {
    Sequence* const sequence = running_[i];
    if (sequence->scheduling.last_planned_step == batch_->step) {
      continue;
    }
    const int32_t wanted = TokensToCompute(*sequence);
    if (wanted == 0 || (wanted == 1) != decodes) {
      continue;
    }
    const int32_t granted = ReserveBlocks(sequence, std::min(wanted, budget_));
    if (granted > 0) {
      PlanTokens(sequence, granted);
    }
  }
}

void Scheduler::Admit(Clock::time_point now) {
  for (auto next = waiting_.begin();
       next != waiting_.end() && budget_ > 0 && !free_slots_.empty();) {
    Sequence* const sequence = *next;
    const SharedPrompt shared = FindSharedPrompt(*sequence);
    if (shared.coming) {
      ++next;
      continue;
    }
    int64_t needed = blocks_.BlocksFor(sequence->num_tokens()) - shared.blocks;
    if (!running_.empty()) {
      needed += BlocksPromised() + Headroom(blocks_);
    }
    if (needed > blocks_.num_free()) {
      return;
    }
    next = waiting_.erase(next);
    Start(sequence, shared, now);
  }
}

Scheduler::SharedPrompt Scheduler::FindSharedPrompt(const Sequence& sequence) const {
  SharedPrompt shared;
  if (sequence.scheduling.group == nullptr || sequence.wants_prompt_logprobs()) {
    return shared;
  }
  // The last token of the prompt is computed by each sample: its logits give the first token.
  const int32_t blocks = (sequence.num_prompt_tokens() - 1) / blocks_.block_size();
  for (const Sequence* other : sequence.scheduling.group->running) {
    const SchedulingState& state = other->scheduling;
    // What is planned in this very step cannot be read in it.
    const int32_t computed =
        state.last_planned_step == batch_->step ? state.num_computed_before : state.num_computed;
    if (blocks > 0 && computed >= blocks * blocks_.block_size()) {
      return {.from = other, .blocks = blocks};
    }
    shared.coming = blocks > 0;
  }
  return shared;
}

void Scheduler::Start(Sequence* sequence, const SharedPrompt& shared, Clock::time_point now) {
  if (!sequence->started()) {
    sequence->MarkStarted(now);
    observer_->OnLeftWaiting(*sequence);
  }
  SchedulingState& state = sequence->scheduling;
  state.phase = Phase::kRunning;
  state.slot = free_slots_.back();
  free_slots_.pop_back();
  running_.insert(std::upper_bound(running_.begin(), running_.end(), sequence, RunsBefore()),
                  sequence);
  if (state.group != nullptr) {
    state.group->running.push_back(sequence);
  }
  batch_->slot_assignments.push_back({.slot = state.slot,
                                      .params = &sequence->request().sampling,
                                      .tokens = sequence->tokens(),
                                      .num_prompt_tokens = sequence->num_prompt_tokens(),
                                      .pooling = sequence->request().pooling});
  for (int32_t i = 0; i < shared.blocks; ++i) {
    const BlockId block = shared.from->scheduling.blocks[i];
    blocks_.AddReference(block);
    batch_->block_table_changes.push_back({state.slot, i, block});
    state.blocks.push_back(block);
  }
  state.num_computed = shared.blocks * blocks_.block_size();
  PlanTokens(sequence, ReserveBlocks(sequence, std::min(TokensToCompute(*sequence), budget_)));
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
  state.num_computed_before = first;
  state.num_computed = first + num_tokens;
  state.last_planned_step = batch_->step;
  ++state.steps_outstanding;
  budget_ -= num_tokens;
}

absl::Status Scheduler::CheckResult(const StepResult& result, const PlannedStep& planned) const {
  const size_t rows = planned.sampled.size();
  if (result.step != planned.step || result.row_offsets.size() != rows + 1 ||
      result.row_offsets[0] != 0 ||
      result.row_offsets[rows] != static_cast<int32_t>(result.token_ids.size())) {
    return absl::InternalError(absl::StrCat(
        "the backend's result does not match step ", planned.step, " with ", rows,
        " sampled rows: it is of step ", result.step, " with ", result.row_offsets.size(),
        " row offsets and ", result.token_ids.size(), " tokens"));
  }
  for (size_t row = 0; row < rows; ++row) {
    if (const int32_t tokens = result.row_offsets[row + 1] - result.row_offsets[row]; tokens != 1) {
      return absl::InternalError(absl::StrCat("row ", row, " of step ", planned.step, " has ",
                                              tokens, " tokens; 1 was asked for"));
    }
  }
  const bool any_logprobs = std::any_of(
      planned.sampled.begin(), planned.sampled.end(),
      [](const Sequence* sequence) { return sequence->request().sampling.num_logprobs >= 0; });
  const size_t logprobs = any_logprobs ? rows : 0;
  const size_t values = planned.pooled.size() * hidden_size_;
  if (result.logprobs.own.size() != logprobs || result.scores.own.size() != planned.scored.size() ||
      result.pooled.size() != values) {
    return absl::InternalError(
        absl::StrCat("the backend's result of step ", planned.step, " has ", result.logprobs.size(),
                     " log-probabilities of sampled tokens, ", result.scores.size(),
                     " of the prompt's and ", result.pooled.size(), " pooled values; ", logprobs,
                     ", ", planned.scored.size(), " and ", values, " were asked for"));
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Complete(const StepResult& result, Clock::time_point now) {
  assert(steps_outstanding_ > 0);
  const PlannedStep& planned = planned_[(last_step_ - steps_outstanding_ + 1) % planned_.size()];
  RETURN_IF_ERROR(CheckResult(result, planned));
  --steps_outstanding_;
  for (Sequence* sequence : planned.sequences) {
    --sequence->scheduling.steps_outstanding;
  }
  // What is computed after a sequence's end nobody sees.
  for (size_t i = 0; i < planned.scored.size(); ++i) {
    if (Sequence* const sequence = planned.scored[i]; !sequence->finished()) {
      AfterOutput(sequence, sequence->AcceptPromptLogprobs(result.scores[i]));
    }
  }
  for (size_t i = 0; i < planned.pooled.size(); ++i) {
    if (Sequence* const sequence = planned.pooled[i]; !sequence->finished()) {
      const auto values = std::span(result.pooled).subspan(i * hidden_size_, hidden_size_);
      AfterOutput(sequence, sequence->AcceptEmbedding(values, now));
    }
  }
  for (size_t row = 0; row < planned.sampled.size(); ++row) {
    Sequence* const sequence = planned.sampled[row];
    --sequence->scheduling.samples_in_flight;
    if (sequence->finished()) {
      continue;
    }
    observer_->OnToken(*sequence, now);
    LogprobView logprobs;
    const bool wanted = sequence->request().sampling.num_logprobs >= 0;
    if (wanted) {
      logprobs = result.logprobs[row];
    }
    AfterOutput(sequence,
                sequence->AcceptToken(result.token_ids[row], wanted ? &logprobs : nullptr, now));
  }
  FreeLeaving();
  return absl::OkStatus();
}

void Scheduler::AfterOutput(Sequence* sequence, bool tell) {
  if (tell) {
    to_notify_.push_back(sequence->stream());
  }
  if (!sequence->finished()) {
    return;
  }
  observer_->OnFinished(*sequence);
  if (sequence->scheduling.phase == Phase::kRunning) {
    LeaveRunning(sequence, Phase::kFinished);
  } else {
    sequence->scheduling.phase = Phase::kFinished;
  }
}

void Scheduler::LeaveRunning(Sequence* sequence, Phase phase) {
  running_.erase(std::find(running_.begin(), running_.end(), sequence));
  if (const auto& group = sequence->scheduling.group; group != nullptr) {
    group->running.erase(std::find(group->running.begin(), group->running.end(), sequence));
  }
  sequence->scheduling.phase = phase;
  leaving_.push_back(sequence);
}

// Frees what has left and is in no outstanding step.
void Scheduler::FreeLeaving() {
  if (leaving_.empty()) {
    return;
  }
  const auto in_flight = [](const Sequence* sequence) {
    return sequence->scheduling.steps_outstanding > 0;
  };
  const auto first_free = std::partition(leaving_.begin(), leaving_.end(), in_flight);
  for (auto it = first_free; it != leaving_.end(); ++it) {
    Sequence* const sequence = *it;
    ReleaseMemory(sequence);
    if (sequence->scheduling.phase == Phase::kFinished) {
      owned_.erase(sequence);
    } else {
      sequence->scheduling.phase = Phase::kWaiting;
      waiting_.insert(sequence);
    }
  }
  leaving_.erase(first_free, leaving_.end());
}

void Scheduler::ReleaseMemory(Sequence* sequence) {
  SchedulingState& state = sequence->scheduling;
  for (const BlockId block : state.blocks) {
    blocks_.Release(block);
  }
  state.blocks.clear();
  free_slots_.push_back(std::exchange(state.slot, SeqSlot{}));
}

void Scheduler::EndAll(const absl::Status& status, Clock::time_point now) {
  steps_outstanding_ = 0;
  for (auto& [sequence, owned] : owned_) {
    owned->scheduling.steps_outstanding = 0;
  }
  const std::vector<Sequence*> leaving = leaving_;
  for (Sequence* sequence : leaving) {
    if (!sequence->finished()) {
      End(sequence, status, FinishReason::kNone, now);
    }
  }
  while (!running_.empty()) {
    End(running_.back(), status, FinishReason::kNone, now);
  }
  FreeLeaving();
  while (!waiting_.empty()) {
    End(*waiting_.begin(), status, FinishReason::kNone, now);
  }
}

}  // namespace ferrite

#include "engine/scheduler.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

SchedulerOptions AsBackendSuggests(SchedulerOptions options, const BackendInfo& backend) {
  if (options.mixed_step_tokens == 0) {
    options.mixed_step_tokens = backend.mixed_step_tokens;
  }
  return options;
}

}  // namespace

Scheduler::Scheduler(const BackendInfo& backend, SchedulerOptions options, Observer* observer,
                     PrefixSummary* prefixes)
    : options_(AsBackendSuggests(options, backend)),
      hidden_size_(backend.hidden_size),
      observer_(observer),
      blocks_(backend.num_blocks, backend.block_size, prefixes),
      waiting_(options.aging_seconds) {
  for (int32_t i = options.max_running - 1; i >= 0; --i) {
    free_slots_.push_back(SeqSlot{i});
  }
  running_.reserve(options.max_running);
  leaving_.reserve(options.max_running);
  to_notify_.reserve(options.max_running);
  shared_.reserve(backend.num_blocks);
  for (PlannedStep& step : planned_) {
    step.sequences.reserve(options.max_running);
    step.sampled.reserve(options.max_running);
    step.pooled.reserve(options.max_running);
    step.scored.reserve(kMostScoringTokens);
  }
}

void Scheduler::Add(std::unique_ptr<Sequence> sequence) {
  Sequence* const added = sequence.get();
  owned_.emplace(added, std::move(sequence));
  waiting_.Enter(added);
  waiting_.Add(added);
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
  waiting_.ForEach(collect);
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
      waiting_.Remove(sequence);
      Destroy(sequence);
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
  waiting_.OnStopped(sequence);
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
      Destroy(sequence);
    } else {
      sequence->scheduling.phase = Phase::kWaiting;
      waiting_.Add(sequence);
    }
  }
  leaving_.erase(first_free, leaving_.end());
}

void Scheduler::Destroy(Sequence* sequence) {
  waiting_.Forget(sequence);
  owned_.erase(sequence);
}

void Scheduler::ReleaseMemory(Sequence* sequence) {
  SchedulingState& state = sequence->scheduling;
  ShareBlocks(sequence);
  // The last first: what begins a prompt is worth more than what ends it.
  for (auto block = state.blocks.rbegin(); block != state.blocks.rend(); ++block) {
    blocks_.Release(*block);
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
  blocks_.ForgetPrefixes();  // steps that did not end may not have computed them
  ended_.clear();
  waiting_.ForEach([this](Sequence* sequence) { ended_.push_back(sequence); });
  for (Sequence* sequence : ended_) {
    End(sequence, status, FinishReason::kNone, now);
  }
}

}  // namespace ferrite

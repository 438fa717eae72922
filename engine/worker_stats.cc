#include "engine/worker_stats.h"

#include <algorithm>

namespace ferrite {

StepPhase PhaseOf(const Batch& batch) {
  const int32_t sequences = batch.num_sequences();
  if (batch.num_tokens() == sequences) {
    return StepPhase::kDecode;
  }
  for (int32_t s = 0; s < sequences; ++s) {
    if (batch.cu_seqlens[s + 1] - batch.cu_seqlens[s] == 1) {
      return StepPhase::kMixed;
    }
  }
  return StepPhase::kPrefill;
}

RequestEnd EndOf(const Sequence& sequence) {
  switch (sequence.end_code()) {
    case absl::StatusCode::kOk:
      break;
    case absl::StatusCode::kCancelled:
      return RequestEnd::kCancelled;
    case absl::StatusCode::kDeadlineExceeded:
      return RequestEnd::kDeadline;
    default:
      return RequestEnd::kFailed;
  }
  switch (sequence.finish_reason()) {
    case FinishReason::kStop:
      return RequestEnd::kStop;
    case FinishReason::kLength:
      return RequestEnd::kLength;
    case FinishReason::kAborted:
      return RequestEnd::kAborted;
    case FinishReason::kNone:
      break;
  }
  return RequestEnd::kEmbedded;
}

void WorkerStats::OnLaunched(const Batch& batch, Clock::time_point now) {
  if (outstanding_ < launched_.size()) {
    launched_[outstanding_++] = {now, PhaseOf(batch), batch.num_tokens()};
  }
}

// A step that was launched while another ran begins when that one ends.
void WorkerStats::OnCompleted(const StepResult& result, Clock::time_point now) {
  if (outstanding_ == 0) {
    return;
  }
  const Launched step = launched_[0];
  launched_[0] = launched_[1];
  --outstanding_;
  step_seconds[static_cast<size_t>(step.phase)].Observe(
      SecondsBetween(std::max(step.at, last_end_), now));
  last_end_ = now;
  step_tokens.Observe(step.tokens);
  (result.replayed ? graph_steps : eager_steps).Add(1);
}

void WorkerStats::OnToken(const Sequence& sequence, Clock::time_point now) {
  generation_tokens.Add(1);
  if (sequence.num_generated() == 0) {
    first_token_seconds.Observe(SecondsBetween(sequence.request().received, now));
    return;
  }
  const Clock::duration gap = now - sequence.last_token_at();
  if (gap != gap_) {
    FlushGaps();
    gap_ = gap;
  }
  ++gaps_;
}

void WorkerStats::FlushGaps() {
  if (gaps_ > 0) {
    token_gap_seconds.Observe(std::chrono::duration<double>(gap_).count(), gaps_);
    gaps_ = 0;
  }
}

void WorkerStats::OnLeftWaiting(const Sequence& sequence) {
  const Clock::time_point left =
      sequence.started() ? sequence.started_at() : sequence.finished_at();
  queue_seconds.Observe(SecondsBetween(sequence.request().received, left));
  if (sequence.started() && sequence.num_waiting_tokens() > 0) {
    prompt_tokens.Add(sequence.num_prompt_tokens());
    request_prompt_tokens.Observe(sequence.num_prompt_tokens());
    if (sequence.takes_prefixes()) {
      prefix_queried_tokens.Add(sequence.num_prompt_tokens());
      prefix_hit_tokens.Add(sequence.cached_tokens());
    }
  }
}

void WorkerStats::OnFinished(const Sequence& sequence) {
  FlushGaps();
  finished[static_cast<size_t>(EndOf(sequence))].Add(1);
  request_seconds.Observe(SecondsBetween(sequence.request().received, sequence.finished_at()));
  if (!sequence.pools()) {
    request_generation_tokens.Observe(sequence.num_generated());
  }
}

}  // namespace ferrite

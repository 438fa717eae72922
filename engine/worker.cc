#include "engine/worker.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/refusal.h"
#include "engine/status_macros.h"
#include "engine/thread_name.h"

namespace ferrite {
namespace {

int64_t Nanoseconds(Clock::time_point time) {
  return std::chrono::nanoseconds(time.time_since_epoch()).count();
}

}  // namespace

Worker::Worker(std::unique_ptr<Backend> backend, SchedulerOptions options, AdmissionLimits limits,
               bool summarize_prefixes, FinishedCallback on_finished)
    : backend_(std::move(backend)),
      on_finished_(std::move(on_finished)),
      prefixes_(summarize_prefixes
                    ? std::make_unique<PrefixSummary>(info().num_blocks, info().block_size)
                    : nullptr),
      queue_(limits),
      scheduler_(backend_->info(), options, this, prefixes_.get()) {
  PublishLoad();
  thread_ = std::thread([this] { Run(); });
}

Worker::~Worker() {
  stop_.store(true);
  stop_.notify_all();
  queue_.Close(Refused(absl::UnavailableError("the server is shutting down"), Refusal::kDraining));
  thread_.join();
}

absl::Status Worker::Submit(std::vector<std::unique_ptr<Sequence>>& sequences) {
  int64_t tokens = 0;
  for (const std::unique_ptr<Sequence>& sequence : sequences) {
    tokens += sequence->max_tokens();
  }
  tokens_outstanding_.fetch_add(tokens);
  absl::Status status = queue_.Push(sequences);
  if (!status.ok()) {
    tokens_outstanding_.fetch_sub(tokens);
  }
  return status;
}

int32_t Worker::CachedTokens(const Sequence& sequence) const {
  if (prefixes_ == nullptr || !sequence.takes_prefixes()) {
    return 0;
  }
  const int32_t cached =
      prefixes_->CachedTokens(sequence.scheduling.prefix_root, sequence.tokens());
  return std::min(cached, sequence.num_waiting_tokens());
}

WorkerLoad Worker::load() const {
  WorkerLoad load;
  load.requests_running = running_.load();
  load.requests_waiting = queue_.num_waiting();
  load.kv_blocks_free = blocks_free_.load();
  load.kv_blocks_total = info().num_blocks;
  load.tokens_outstanding = tokens_outstanding_.load();
  load.steps = steps_.load();
  load.preemptions = preemptions_.load();
  load.failed = failed_.load();
  if (const int64_t progress = progress_ns_.load(); progress != 0) {
    load.step_age_seconds = 1e-9 * static_cast<double>(Nanoseconds(Clock::now()) - progress);
  }
  load.seconds_until_slot = SecondsUntilSlot(rates(), backlog());
  return load;
}

StepRates Worker::rates() const {
  MutexLock lock(&rates_mutex_);
  return rates_;
}

Backlog Worker::backlog() const {
  const int32_t running = running_.load();
  // Where only prompts run, as in serving embeddings, none is held back for those that decode.
  const int32_t decoding = decoding_.load() > 0 ? running : 0;
  return {.running = running,
          .waiting = queue_.num_waiting(),
          .waiting_tokens = queue_.num_waiting_tokens(),
          .max_running = options().max_running,
          .step_tokens = options().StepTokens(decoding)};
}

absl::Status Worker::failure() const {
  MutexLock lock(&failure_mutex_);
  return failure_;
}

void Worker::OnLeftWaiting(const Sequence& sequence) {
  queue_.OnLeftWaiting(sequence.num_waiting_tokens());
  tokens_outstanding_.fetch_sub(sequence.saved_tokens());
  stats_.OnLeftWaiting(sequence);
}

void Worker::OnToken(const Sequence& sequence, Clock::time_point now) {
  stats_.OnToken(sequence, now);
}

void Worker::OnFinished(const Sequence& sequence) {
  tokens_outstanding_.fetch_sub(sequence.max_tokens());
  if (sequence.started()) {  // else no slot has become free
    estimator_.OnEnded();
  }
  stats_.OnFinished(sequence);
  on_finished_(sequence);
}

void Worker::Run() {
  SetThreadName("ferrite-worker");
  while (true) {
    const bool idle = !scheduler_.has_work();
    if (idle) {
      progress_ns_.store(0);
    }
    TakeNewRequests(/*wait=*/idle);
    if (stop_.load()) {
      Fail(absl::UnavailableError("the server is shutting down"));
      return;
    }
    if (!scheduler_.has_work()) {
      // Closed for a drain: the destructor ends the thread.
      stop_.wait(false);
      continue;
    }
    if (absl::Status status = Step(); !status.ok()) {
      const absl::Status failure =
          absl::InternalError(absl::StrCat("the worker on ", info().device, " failed at step ",
                                           scheduler_.num_steps(), ": ", status.ToString()));
      {
        MutexLock lock(&failure_mutex_);
        failure_ = failure;
      }
      failed_.store(true);
      Fail(failure);
      progress_ns_.store(0);
      return;
    }
  }
}

// One turn of the loop. While the host plans and hands out tokens, the device runs a step if the
// backend's pipeline has room for it.
absl::Status Worker::Step() {
  progress_ns_.store(Nanoseconds(Clock::now()));
  scheduler_.Plan(Clock::now(), &batch_);
  const bool launched = !batch_.empty();
  if (launched) {
    // Each sequence of more than one token is computing its prompt.
    const Clock::time_point now = Clock::now();
    estimator_.OnLaunched(now, batch_.num_tokens(), batch_.num_tokens() - batch_.num_sequences());
    stats_.OnLaunched(batch_, now);
    RETURN_IF_ERROR(backend_->Launch(batch_));
  }
  const int32_t outstanding = scheduler_.steps_outstanding();
  if (outstanding == backend_->info().pipeline_depth || (!launched && outstanding > 0)) {
    RETURN_IF_ERROR(backend_->Wait(&result_));
    const Clock::time_point now = Clock::now();
    estimator_.OnCompleted(now);
    stats_.OnCompleted(result_, now);
    RETURN_IF_ERROR(scheduler_.Complete(result_, now));
    stats_.OnHandedOut();
  } else if (!launched && scheduler_.has_work()) {
    return absl::InternalError("the scheduler has work but plans none");
  }
  PublishLoad();
  delivery_.Post(&scheduler_.to_notify());
  return absl::OkStatus();
}

void Worker::TakeNewRequests(bool wait) {
  queue_.Drain(wait, &incoming_);
  for (std::unique_ptr<Sequence>& sequence : incoming_) {
    scheduler_.Add(std::move(sequence));
  }
  incoming_.clear();
}

// Ends everything in flight and everything that still arrives; nothing runs afterwards.
void Worker::Fail(const absl::Status& status) {
  queue_.Close(Refused(absl::UnavailableError(std::string(status.message())), Refusal::kUnhealthy));
  while (scheduler_.steps_outstanding() > 0 && !failed_.load()) {
    if (!backend_->Wait(&result_).ok() || !scheduler_.Complete(result_, Clock::now()).ok()) {
      break;
    }
  }
  TakeNewRequests(/*wait=*/false);
  scheduler_.EndAll(status, Clock::now());
  PublishLoad();
  delivery_.Post(&scheduler_.to_notify());
}

void Worker::PublishLoad() {
  running_.store(scheduler_.num_running());
  decoding_.store(scheduler_.num_decoding());
  blocks_free_.store(scheduler_.blocks().num_free());
  steps_.store(scheduler_.num_steps());
  preemptions_.store(scheduler_.num_preemptions());
  MutexLock lock(&rates_mutex_);
  rates_ = estimator_.rates();
}

}  // namespace ferrite

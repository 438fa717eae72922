// One model replica: a thread that alone owns its scheduler, KV blocks and backend.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "engine/backend.h"
#include "engine/delivery.h"
#include "engine/rate_estimator.h"
#include "engine/request_queue.h"
#include "engine/scheduler.h"
#include "engine/worker_stats.h"

namespace ferrite {

// A snapshot, each figure exact at some recent step.
struct WorkerLoad {
  int32_t requests_running = 0;
  int32_t requests_waiting = 0;
  int32_t kv_blocks_free = 0;
  int32_t kv_blocks_total = 0;
  // Over requests in flight: the prompt, but for what was cached when it started, plus the most
  // output.
  int64_t tokens_outstanding = 0;
  uint64_t steps = 0;
  uint64_t preemptions = 0;
  double step_age_seconds = 0;    // since the present step made progress; 0 when idle
  double seconds_until_slot = 0;  // an estimate; 0 if one is free
  bool failed = false;            // the backend failed: nothing is served any more
};

// The loop is plan and launch step t+1, wait for step t, hand out its tokens. Thread-safe.
class Worker final : private Scheduler::Observer {
 public:
  using FinishedCallback = std::function<void(const Sequence&)>;

  // `on_finished` is called on the worker's thread for every sequence whose stream has finished.
  // `summarize_prefixes`: for CachedTokens.
  Worker(std::unique_ptr<Backend> backend, SchedulerOptions options, AdmissionLimits limits,
         bool summarize_prefixes, FinishedCallback on_finished);
  // Ends what is in flight with UNAVAILABLE and joins.
  ~Worker() override;

  const BackendInfo& info() const { return backend_->info(); }
  const SchedulerOptions& options() const { return scheduler_.options(); }

  // As RequestQueue::CheckRoom and Push.
  absl::Status CheckRoom(int32_t requests, int64_t prompt_tokens) const {
    return queue_.CheckRoom(requests, prompt_tokens);
  }
  absl::Status Submit(std::vector<std::unique_ptr<Sequence>>& sequences);

  // Refuses new requests with `reason`; those in flight go on.
  void CloseAdmission(const absl::Status& reason) { queue_.Close(reason); }

  // About how many prompt tokens of a sequence that is not yet submitted need not be computed here;
  // 0 if prefixes are not summarized.
  int32_t CachedTokens(const Sequence& sequence) const;

  WorkerLoad load() const;
  // OK, or Internal with what failed, once load().failed.
  absl::Status failure() const;
  StepRates rates() const;
  const WorkerStats& stats() const { return stats_; }
  Backlog backlog() const;

 private:
  void OnLeftWaiting(const Sequence& sequence) override;
  void OnToken(const Sequence& sequence, Clock::time_point now) override;
  void OnFinished(const Sequence& sequence) override;

  void Run();
  absl::Status Step();
  void TakeNewRequests(bool wait);
  void Fail(const absl::Status& status);
  void PublishLoad();

  const std::unique_ptr<Backend> backend_;
  const FinishedCallback on_finished_;
  const std::unique_ptr<PrefixSummary> prefixes_;  // null without summarize_prefixes
  RequestQueue queue_;
  Delivery delivery_;

  // The worker thread's own, but for what never changes.
  Scheduler scheduler_;
  Batch batch_;
  StepResult result_;
  std::vector<std::unique_ptr<Sequence>> incoming_;
  RateEstimator estimator_;
  WorkerStats stats_;  // its figures are for all to read

  std::atomic<bool> stop_{false};
  std::atomic<bool> failed_{false};
  mutable Mutex rates_mutex_;
  StepRates rates_ ABSL_GUARDED_BY(rates_mutex_);
  mutable Mutex failure_mutex_;
  absl::Status failure_ ABSL_GUARDED_BY(failure_mutex_);  // set before failed_
  std::atomic<int32_t> running_{0};
  std::atomic<int32_t> decoding_{0};
  std::atomic<int32_t> blocks_free_{0};
  std::atomic<int64_t> tokens_outstanding_{0};
  std::atomic<uint64_t> steps_{0};
  std::atomic<uint64_t> preemptions_{0};
  std::atomic<int64_t> progress_ns_{0};  // Clock time of the last progress; 0 when idle
  std::thread thread_;
};

}  // namespace ferrite

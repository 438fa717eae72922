// The way in: checks a request against what can be served and gives it to a worker.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend.h"
#include "engine/prefix_roots.h"
#include "engine/request.h"
#include "engine/token_stream.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/worker.h"

namespace ferrite {

struct EngineOptions {
  SchedulerOptions scheduler;
  AdmissionLimits admission;
  double stuck_step_seconds = 60;  // without progress: a worker counts as stuck
  bool refuse_late = false;        // what cannot meet its deadline at the present rate
  bool prefix_caching = true;      // blocks keep what requests that ended had in common with others
};

// Owns the workers, one per model replica. Thread-safe.
class Engine {
 public:
  // One worker per backend; at least one, all of the same model. InvalidArgument if the options
  // contradict a backend's limits. `tokenizer` must outlive the engine.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(
      EngineOptions options, const Tokenizer* tokenizer,
      std::vector<std::unique_ptr<Backend>> backends);

  // Ends what is in flight with UNAVAILABLE.
  ~Engine();

  // OK if a request would find room now. Cheap: to be asked before any work is done for it.
  absl::Status CheckRoom() const;

  // The most new tokens that a prompt of this length may ask for; 0 or less if it does not fit.
  int64_t MaxNewTokens(int64_t prompt_tokens) const;

  // Hands a request to a worker that neither failed nor is stuck, as ChooseWorker says. Each of
  // `samples` gets one output, drawn with its index as sample_index; they share the blocks of the
  // prompt, and the first also gets the prompt's log-probabilities.
  //
  // InvalidArgument if it could never run (empty prompt, token out of range, longer than the
  // context or the KV pool, more end tokens than the backends take, more samples than the queue
  // holds, an id already in flight), Unimplemented if the backends do not serve what it asks for,
  // DeadlineExceeded if its deadline has passed, ResourceExhausted if the queue is full or, with
  // refuse_late, if the request would come too late, Unavailable when shutting down or if no worker
  // can serve. Nothing is kept of a request that is refused.
  absl::Status Submit(EngineRequest request, std::vector<std::shared_ptr<TokenStream>> samples);
  absl::Status Submit(EngineRequest request, std::shared_ptr<TokenStream> stream);

  // The same for the requests of one call, at least one, all of one id: each has its own prompt and
  // stream. All are taken, or none; an error is that of the first that is at fault, after its index
  // if there are several.
  absl::Status SubmitAll(std::vector<EngineRequest> requests,
                         std::vector<std::shared_ptr<TokenStream>> streams);

  // Ends the request in flight with this id. NotFound if there is none.
  absl::Status Abort(const std::string& request_id);

  // Refuses new requests with UNAVAILABLE; those in flight go on.
  void CloseAdmission();

  // OK, or Unavailable with why the worker cannot serve: it failed, or its step is stuck.
  absl::Status WorkerHealth(size_t worker) const;

  // Ends with INTERNAL what is in flight on workers that have been stuck for `grace_seconds`; on
  // the calling thread, which does not wait for those workers. A worker whose step ends after all
  // drops these requests and serves again. Returns how many were ended.
  int32_t FailStuckRequests(double grace_seconds);

  int32_t num_in_flight() const;
  std::vector<WorkerLoad> load() const;
  const BackendInfo& worker_info(size_t worker) const { return workers_[worker]->info(); }
  // Of options(), with what its backend suggests where nothing was set.
  const SchedulerOptions& worker_options(size_t worker) const {
    return workers_[worker]->options();
  }
  const WorkerStats& worker_stats(size_t worker) const { return workers_[worker]->stats(); }
  size_t num_workers() const { return workers_.size(); }
  const EngineOptions& options() const { return options_; }
  // Whether every worker does as SamplingParams::adjusts_logits() asks.
  bool adjusts_logits() const { return adjusts_logits_; }
  int32_t hidden_size() const { return worker_info(0).hidden_size; }
  // The most tokens that prompt and output may have together.
  int32_t context_length() const { return context_length_; }

  // How long a refused client should wait: about until the next request ends.
  double RetryAfterSeconds() const;

 private:
  Engine(EngineOptions options, const Tokenizer* tokenizer);
  absl::Status Validate(const EngineRequest& request) const;
  absl::Status ValidateLength(const EngineRequest& request) const;
  absl::Status ValidateServed(const EngineRequest& request) const;
  // Who the sequences of a request share prefixes with.
  PrefixId PrefixRootOf(const EngineRequest& request, size_t num_samples);
  std::unique_ptr<Sequence> MakeSequence(EngineRequest request, PrefixId root,
                                         std::shared_ptr<TokenStream> stream) const;
  absl::Status SubmitSequences(const std::string& id,
                               std::vector<std::unique_ptr<Sequence>> sequences);
  // As ChooseWorker; Unavailable if no worker can serve.
  absl::StatusOr<size_t> WorkerFor(std::span<const std::unique_ptr<Sequence>> sequences) const;
  absl::Status CheckDeadline(const Worker& worker,
                             const std::vector<std::unique_ptr<Sequence>>& sequences) const;
  absl::Status StuckStatus(size_t worker, double step_age_seconds) const;
  void OnFinished(const std::string& request_id);

  const EngineOptions options_;
  const Tokenizer* const tokenizer_;
  int32_t context_length_ = 0;
  int32_t vocab_size_ = 0;
  int32_t block_size_ = 0;
  int32_t max_end_token_ids_ = 0;
  bool adjusts_logits_ = true;
  bool scores_tokens_ = true;
  bool pools_ = true;
  PrefixRoots prefix_roots_;

  struct InFlight {
    std::vector<std::shared_ptr<TokenStream>> streams;
    size_t num_running = 0;  // streams that have not finished
    size_t worker = 0;
  };
  mutable Mutex mutex_;
  std::unordered_map<std::string, InFlight> in_flight_ ABSL_GUARDED_BY(mutex_);  // by request id
  std::vector<std::unique_ptr<Worker>> workers_;  // last: their threads use what is above
};

}  // namespace ferrite

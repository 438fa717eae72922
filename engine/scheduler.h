// Decides what each step computes: continuous batching over paged KV blocks.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "engine/backend.h"
#include "engine/batch.h"
#include "engine/block_manager.h"
#include "engine/clock.h"
#include "engine/sequence.h"
#include "engine/waiting_line.h"

namespace ferrite {

struct SchedulerOptions {
  int32_t max_running = 64;       // sequences; at most the backend's max_sequences
  int32_t max_step_tokens = 512;  // at least max_running; at most the backend's
  // Of a step that has chunks of prompts beside sequences that decode; 0: as the backend suggests.
  int32_t mixed_step_tokens = 0;
  double aging_seconds = 30;  // what a level of priority is worth in waiting; above 0

  // The most tokens of a step in which so many sequences decode. mixed_step_tokens is not 0.
  int32_t StepTokens(int32_t decodes) const;
};

// One token budget a step, shared by decodes (first) and prefill chunks, and smaller where there
// are both: who decodes waits for the chunks. Who starts next is the waiting line's to say. When
// blocks run out the running sequence whose turn is the latest is preempted: it gives up its blocks
// and is recomputed later, from its prompt and output so far. The first can always take the blocks
// of all others, so some sequence always advances.
//
// Sequences share the blocks that hold what their prompts have in common: one computes it, those
// that come later (or wait while it is being computed) take references, and compute the rest into
// blocks of their own. Only full blocks are shared, and nobody writes into one, so none is ever
// copied. Blocks keep what they hold when nobody has them any more, until they are needed.
//
// Up to two planned steps may be outstanding. A sequence's blocks are freed, whatever ended or
// preempted it, only once the last step that includes it has been completed. Plan and Complete
// allocate nothing in the steady state. Thread-compatible: a worker's own.
class Scheduler {
 public:
  // Told of what others count.
  class Observer {
   public:
    virtual ~Observer() = default;
    // A sequence has started, or ended without having started.
    virtual void OnLeftWaiting(const Sequence& sequence) = 0;
    // A sequence's next token has come, and is accepted next.
    virtual void OnToken(const Sequence& /*sequence*/, Clock::time_point /*now*/) {}
    // A sequence's stream has finished.
    virtual void OnFinished(const Sequence& sequence) = 0;
  };

  // `observer` must outlive the scheduler, and so must `prefixes`, unless it is null: it is told
  // what is cached.
  Scheduler(const BackendInfo& backend, SchedulerOptions options, Observer* observer,
            PrefixSummary* prefixes = nullptr);

  // The sequence must fit the pool on its own (Engine checks that at admission).
  void Add(std::unique_ptr<Sequence> sequence);

  // Fills `batch` with the next step and counts it as outstanding, or leaves it empty if there is
  // nothing to compute before the outstanding step completes. Ends what was cancelled, aborted or
  // is past its deadline.
  void Plan(Clock::time_point now, Batch* batch);

  // Takes the outcome of the oldest outstanding step. Internal if it does not match that step.
  absl::Status Complete(const StepResult& result, Clock::time_point now);

  // Ends everything and forgets outstanding steps, for a backend that will not be used again or
  // has no step outstanding.
  void EndAll(const absl::Status& status, Clock::time_point now);

  // Streams whose listeners are to be told; the caller takes them and leaves the vector empty.
  std::vector<std::shared_ptr<TokenStream>>& to_notify() { return to_notify_; }

  // As given, with the backend's suggestions where nothing was set; never changes.
  const SchedulerOptions& options() const { return options_; }
  bool has_work() const { return !owned_.empty(); }
  int32_t steps_outstanding() const { return steps_outstanding_; }
  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }
  int32_t num_waiting() const { return waiting_.size(); }
  // Sequences that decode in the step planned last.
  int32_t num_decoding() const { return num_decoding_; }
  uint64_t num_preemptions() const { return num_preemptions_; }
  uint64_t num_steps() const { return last_step_; }
  const BlockManager& blocks() const { return blocks_; }

 private:
  using Phase = SchedulingState::Phase;
  struct PlannedStep {
    uint64_t step = 0;
    std::vector<Sequence*> sequences;
    std::vector<Sequence*> sampled;  // by sample row
    std::vector<Sequence*> scored;   // by entry of Batch::scored
    std::vector<Sequence*> pooled;   // by entry of Batch::pooled_seqs
  };
  // What of a sequence need not be computed.
  struct SharedPrefix {
    int32_t free_blocks = 0;  // of shared_, how many nobody has
    bool coming = false;      // the step being planned computes more of it
  };

  // Tokens a step of sequences that score their prompts: each costs a row of the model's largest
  // product, for which those that decode must not wait long.
  static constexpr int32_t kMostScoringTokens = 256;

  void EndStopped(Clock::time_point now);
  void End(Sequence* sequence, const absl::Status& status, FinishReason reason,
           Clock::time_point now);
  void PlanRunning(bool decodes);
  bool Decodes(const Sequence& sequence) const;
  void Admit(Clock::time_point now);
  SharedPrefix FindSharedPrefix(const Sequence& sequence);
  void Start(Sequence* sequence, Clock::time_point now);
  int64_t BlocksPromised() const;
  int32_t TokensToCompute(const Sequence& sequence) const;
  // Of those, what the step's budgets have room for.
  int32_t TokensToPlan(const Sequence& sequence) const;
  int32_t ReserveBlocks(Sequence* sequence, int32_t num_tokens);
  bool PreemptFor(const Sequence& sequence);
  void PlanTokens(Sequence* sequence, int32_t num_tokens);
  void ShareBlocks(Sequence* sequence);
  absl::Status CheckResult(const StepResult& result, const PlannedStep& planned) const;
  void AfterOutput(Sequence* sequence, bool tell);
  void LeaveRunning(Sequence* sequence, Phase phase);
  void FreeLeaving();
  void Destroy(Sequence* sequence);
  void ReleaseMemory(Sequence* sequence);

  const SchedulerOptions options_;
  const int32_t hidden_size_;
  Observer* const observer_;
  BlockManager blocks_;
  std::vector<SeqSlot> free_slots_;

  std::unordered_map<const Sequence*, std::unique_ptr<Sequence>> owned_;
  WaitingLine waiting_;
  std::vector<Sequence*> running_;  // by RunsBefore
  std::vector<Sequence*> leaving_;  // kPreempting or kFinished, with steps outstanding

  std::array<PlannedStep, 2> planned_;  // step s is at s % 2
  Batch* batch_ = nullptr;              // while planning
  int32_t budget_ = 0;                  // while planning: tokens left in the step
  int32_t scoring_budget_ = 0;          // likewise, of sequences that score their prompts
  int32_t num_decoding_ = 0;
  uint64_t last_step_ = 0;
  int32_t steps_outstanding_ = 0;
  uint64_t num_preemptions_ = 0;
  std::vector<std::shared_ptr<TokenStream>> to_notify_;
  std::vector<Sequence*> ended_;           // scratch
  std::vector<PrefixIndex::Node> shared_;  // scratch: the blocks that FindSharedPrefix found
};

}  // namespace ferrite

#include "tests/testing/simulation.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"

namespace ferrite::test {
namespace {

constexpr TokenId kOutputToken = 300;
constexpr int32_t kVocabulary = 500;

Clock::time_point At(double seconds) {
  return Clock::time_point() + std::chrono::hours(1) +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// Of the prompts numbered so: no two have a block in common.
TokenId PromptToken(uint64_t prompt, int32_t position) {
  uint64_t mixed = (prompt << 20 ^ static_cast<uint64_t>(position)) * 0x9e3779b97f4a7c15;
  mixed = (mixed ^ mixed >> 29) * 0xbf58476d1ce4e5b9;
  return static_cast<TokenId>((mixed >> 32) % kVocabulary);
}

double Seconds(Clock::time_point time) { return SecondsBetween(At(0), time); }

class Simulation : public Scheduler::Observer {
 public:
  Simulation(const SimulationOptions& options, const std::vector<SimulatedRequest>& requests,
             const Tokenizer& tokenizer)
      : options_(options),
        requests_(requests),
        tokenizer_(tokenizer),
        scheduler_(Info(options), options.scheduler, this) {
    result_.outcomes.resize(requests.size());
  }

  absl::StatusOr<SimulationResult> Run() {
    while (arrived_ < requests_.size() || scheduler_.has_work()) {
      if (!scheduler_.has_work()) {
        now_ = std::max(now_, requests_[arrived_].arrival);
      }
      TakeArrivals();
      RETURN_IF_ERROR(Step());
    }
    result_.seconds = now_;
    result_.steps = scheduler_.num_steps();
    result_.preemptions = scheduler_.num_preemptions();
    result_.recomputed_tokens = computed_tokens_ - NeededTokens();
    result_.blocks_not_free = scheduler_.blocks().num_blocks() - scheduler_.blocks().num_free();
    return std::move(result_);
  }

  void OnLeftWaiting(const Sequence& sequence) override {
    SimulatedOutcome& outcome = OutcomeOf(sequence);
    outcome.started = now_ - RequestOf(sequence).arrival;
    outcome.cached_tokens = sequence.cached_tokens();
  }
  void OnToken(const Sequence& sequence, Clock::time_point now) override {
    SimulatedOutcome& outcome = OutcomeOf(sequence);
    if (sequence.num_generated() == 0) {
      outcome.first_token = Seconds(now) - RequestOf(sequence).arrival;
    } else {
      outcome.longest_gap =
          std::max(outcome.longest_gap, SecondsBetween(sequence.last_token_at(), now));
    }
  }
  void OnFinished(const Sequence& sequence) override {
    OutcomeOf(sequence).ended = now_ - RequestOf(sequence).arrival;
  }

 private:
  struct Outstanding {
    uint64_t step;
    int32_t samples;
    double end;
  };

  static BackendInfo Info(const SimulationOptions& options) {
    BackendInfo info;
    info.num_blocks = options.num_blocks;
    info.block_size = options.block_size;
    return info;
  }
  static size_t IndexOf(const Sequence& sequence) {
    size_t index = 0;
    (void)absl::SimpleAtoi(sequence.request().id, &index);
    return index;
  }
  const SimulatedRequest& RequestOf(const Sequence& sequence) const {
    return requests_[IndexOf(sequence)];
  }
  SimulatedOutcome& OutcomeOf(const Sequence& sequence) {
    return result_.outcomes[IndexOf(sequence)];
  }

  // Each token once, but for what was cached and the last, which is fed to nobody.
  int64_t NeededTokens() const {
    int64_t needed = 0;
    for (size_t i = 0; i < requests_.size(); ++i) {
      needed += requests_[i].prompt_tokens + requests_[i].output_tokens - 1 -
                result_.outcomes[i].cached_tokens;
    }
    return needed;
  }

  void TakeArrivals() {
    for (; arrived_ < requests_.size() && requests_[arrived_].arrival <= now_; ++arrived_) {
      const SimulatedRequest& from = requests_[arrived_];
      EngineRequest request;
      request.id = absl::StrCat(arrived_);
      request.client = from.client;
      request.priority = from.priority;
      request.received = At(from.arrival);
      request.max_new_tokens = from.output_tokens;
      for (int32_t i = 0; i < from.prompt_tokens; ++i) {
        request.prompt.push_back(PromptToken(i < from.shared_tokens ? 0 : 1 + arrived_, i));
      }
      auto sequence =
          std::make_unique<Sequence>(std::move(request), tokenizer_, options_.block_size,
                                     std::make_shared<TokenStream>(TokenStream::Mode::kEndOnly));
      sequence->scheduling.prefix_root = options_.prefix_caching ? kSharedRoot : 0;
      sequence->scheduling.keep_prefix = options_.prefix_caching;
      scheduler_.Add(std::move(sequence));
    }
  }

  // As Worker::Step, in modelled time.
  absl::Status Step() {
    scheduler_.Plan(At(now_), &batch_);
    const bool launched = !batch_.empty();
    if (launched) {
      const double seconds = options_.step.Seconds(batch_);
      device_free_ = std::max(now_, device_free_) + seconds;
      result_.busy_seconds += seconds;
      computed_tokens_ += batch_.num_tokens();
      result_.largest_step_tokens = std::max(result_.largest_step_tokens, batch_.num_tokens());
      if (const int32_t decodes = NumDecodes(); decodes > 0 && decodes < batch_.num_tokens()) {
        result_.largest_mixed_step_tokens =
            std::max(result_.largest_mixed_step_tokens, batch_.num_tokens());
      }
      result_.most_running = std::max(result_.most_running, scheduler_.num_running());
      outstanding_.push_back({batch_.step, batch_.num_samples(), device_free_});
    }
    const auto depth = static_cast<size_t>(options_.pipeline_depth);
    if (outstanding_.size() == depth || (!launched && !outstanding_.empty())) {
      RETURN_IF_ERROR(Complete());
    } else if (!launched && scheduler_.has_work()) {
      return absl::InternalError("the scheduler has work but plans none");
    }
    scheduler_.to_notify().clear();
    return absl::OkStatus();
  }

  // Of a token each, to sample the one after a token that was sampled.
  int32_t NumDecodes() const {
    int32_t decodes = 0;
    for (int32_t row = 0; row < batch_.num_samples(); ++row) {
      const int32_t s = batch_.sample_seqs[row];
      const bool one = batch_.cu_seqlens[s + 1] - batch_.cu_seqlens[s] == 1;
      decodes += one && batch_.output_indices[row] > 0 ? 1 : 0;
    }
    return decodes;
  }

  absl::Status Complete() {
    const Outstanding oldest = outstanding_.front();
    outstanding_.pop_front();
    now_ = std::max(now_, oldest.end);
    StepResult result;
    result.step = oldest.step;
    result.token_ids.assign(oldest.samples, kOutputToken);
    for (int32_t row = 0; row <= oldest.samples; ++row) {
      result.row_offsets.push_back(row);
    }
    return scheduler_.Complete(result, At(now_));
  }

  const SimulationOptions& options_;
  const std::vector<SimulatedRequest>& requests_;
  const Tokenizer& tokenizer_;
  SimulationResult result_;
  Scheduler scheduler_;
  Batch batch_;
  std::deque<Outstanding> outstanding_;
  size_t arrived_ = 0;
  int64_t computed_tokens_ = 0;
  double now_ = 0;
  double device_free_ = 0;
};

}  // namespace

double StepModel::Seconds(const Batch& batch) const {
  double context = 0;
  for (const int32_t length : batch.kv_lens) {
    context += length;
  }
  return base_seconds + token_seconds * batch.num_tokens() + context_seconds * context;
}

absl::StatusOr<SimulationResult> Simulate(const SimulationOptions& options,
                                          const std::vector<SimulatedRequest>& requests,
                                          const Tokenizer& tokenizer) {
  return Simulation(options, requests, tokenizer).Run();
}

}  // namespace ferrite::test

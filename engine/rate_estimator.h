// How fast a worker is now, and what that means for one more request.
#pragma once

#include <array>
#include <cstdint>

#include "engine/clock.h"

namespace ferrite {

// A step takes about base_seconds, and token_seconds more for each token in it. All 0 before
// anything is known.
struct StepRates {
  double base_seconds = 0;
  double token_seconds = 0;
  double finish_seconds = 0;  // of work, idle time left out, between two requests that end
  bool decodes_seen = false;  // else all that is known is how long steps with prompts take

  bool known() const { return base_seconds > 0 || token_seconds > 0; }
  double StepSeconds(double tokens) const { return base_seconds + token_seconds * tokens; }
};

// What is ahead of a request.
struct Backlog {
  int32_t running = 0;
  int32_t waiting = 0;
  int64_t waiting_tokens = 0;  // of prompts
  int32_t max_running = 1;
  int32_t step_tokens = 1;  // the most of a step, with those that run in it
};

// How long a request of this size would take, from now to its last token: its turn, its prompt,
// then a step for each further token. Rather too short than too long: prompts that are being
// computed count as done, and what has not been observed as free. 0 if nothing is known.
double SecondsToServe(const StepRates& rates, const Backlog& backlog, int64_t prompt_tokens,
                      int64_t output_tokens);

// How long until a sequence that arrives now gets a slot; 0 if one is free.
double SecondsUntilSlot(const StepRates& rates, const Backlog& backlog);

// Learns from each step and each end, forgetting the past with every one of them. Steps with and
// without prompt tokens are remembered apart, so that the rate of prompts outlives long stretches
// of decoding; what prompts cost is how much longer the former take, by more than the latter
// scatter. Pure arithmetic over the times it is given. Thread-compatible: a worker's own.
class RateEstimator {
 public:
  // A step was launched; up to two may be outstanding. `prompt_tokens` are among its `tokens`.
  void OnLaunched(Clock::time_point now, int32_t tokens, int32_t prompt_tokens);
  // The oldest outstanding step has been waited for. It took the time since it was launched, or
  // since the step before it ended if that was later.
  void OnCompleted(Clock::time_point now);
  // A request has ended.
  void OnEnded() { ++ended_; }

  StepRates rates() const;

 private:
  struct Launched {
    Clock::time_point at;
    int32_t tokens = 0;
    int32_t prompt_tokens = 0;
  };
  // Weighted means that forget.
  struct Mean {
    double weight = 0, tokens = 0, seconds = 0;
    void Add(double w, double t, double s);
  };

  void LearnEnds(double seconds);

  std::array<Launched, 2> launched_;  // the oldest first
  int32_t outstanding_ = 0;
  Clock::time_point last_end_;
  Mean decodes_;        // steps without prompt tokens
  Mean prompts_;        // steps with, by how many
  double scatter_ = 0;  // mean distance of decodes_' seconds from their mean
  int32_t ended_ = 0;   // since the last step
  double worked_ = 0;   // seconds since the last end
  double per_end_ = 0;  // smoothed
};

}  // namespace ferrite

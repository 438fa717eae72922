#include "engine/rate_estimator.h"

#include <algorithm>
#include <cmath>

namespace ferrite {
namespace {

constexpr double kKept = 0.95;       // of what was known, at each step of a kind
constexpr double kKeptOfEnds = 0.9;  // likewise at each end

}  // namespace

double SecondsUntilSlot(const StepRates& rates, const Backlog& backlog) {
  const int64_t ends_needed = int64_t{backlog.running} + backlog.waiting - backlog.max_running + 1;
  return static_cast<double>(std::max<int64_t>(0, ends_needed)) * rates.finish_seconds;
}

double SecondsToServe(const StepRates& rates, const Backlog& backlog, int64_t prompt_tokens,
                      int64_t output_tokens) {
  if (!rates.known()) return 0;
  // While others run, their tokens share each step.
  const int64_t room = std::max(1, backlog.step_tokens - backlog.running);
  const auto prefill = [&](int64_t tokens) {
    const int64_t steps = (tokens + room - 1) / room;
    return static_cast<double>(steps) * rates.StepSeconds(backlog.running) +
           static_cast<double>(tokens) * rates.token_seconds;
  };
  const int64_t decodes = rates.decodes_seen ? std::max<int64_t>(0, output_tokens - 1) : 0;
  const int32_t beside = std::min(backlog.running + 1, backlog.max_running);
  const double decode = static_cast<double>(decodes) * rates.StepSeconds(beside);
  const double turn = std::max(SecondsUntilSlot(rates, backlog),
                               static_cast<double>(backlog.waiting_tokens) * rates.token_seconds);
  return turn + prefill(prompt_tokens) + decode;
}

void RateEstimator::Mean::Add(double w, double t, double s) {
  weight = kKept * weight + w;
  tokens += (t - tokens) * w / weight;
  seconds += (s - seconds) * w / weight;
}

void RateEstimator::OnLaunched(Clock::time_point now, int32_t tokens, int32_t prompt_tokens) {
  if (outstanding_ == static_cast<int32_t>(launched_.size())) return;
  launched_[static_cast<size_t>(outstanding_++)] = {now, tokens, prompt_tokens};
}

void RateEstimator::OnCompleted(Clock::time_point now) {
  if (outstanding_ == 0) return;
  const Launched step = launched_[0];
  launched_[0] = launched_[1];
  --outstanding_;
  const double seconds = std::max(0.0, SecondsBetween(std::max(step.at, last_end_), now));
  last_end_ = now;
  if (step.prompt_tokens > 0) {
    prompts_.Add(step.prompt_tokens, step.tokens, seconds);
  } else {
    const bool first = decodes_.weight == 0;
    decodes_.Add(1, step.tokens, seconds);
    if (!first) scatter_ = kKept * scatter_ + (1 - kKept) * std::abs(seconds - decodes_.seconds);
  }
  LearnEnds(seconds);
}

// The ends that were reported since the step before are spread over the work since the last one.
void RateEstimator::LearnEnds(double seconds) {
  if (ended_ > 0) {
    const double sample = worked_ / ended_;
    const double kept = per_end_ == 0 ? 0 : std::pow(kKeptOfEnds, ended_);
    per_end_ = kept * per_end_ + (1 - kept) * sample;
    ended_ = 0;
    worked_ = 0;
  }
  worked_ += seconds;
}

StepRates RateEstimator::rates() const {
  StepRates rates;
  rates.finish_seconds = per_end_;
  rates.decodes_seen = decodes_.weight > 0;
  if (!rates.decodes_seen) {
    rates.base_seconds = prompts_.seconds;
    return rates;
  }
  const double more_tokens = prompts_.tokens - decodes_.tokens;
  const double more_seconds = prompts_.seconds - decodes_.seconds - scatter_;
  if (prompts_.weight > 0 && more_tokens > 0 && more_seconds > 0) {
    rates.token_seconds = more_seconds / more_tokens;
  }
  // A line through both means, but never below zero at no tokens.
  if (rates.token_seconds * decodes_.tokens > decodes_.seconds) {
    rates.token_seconds = prompts_.seconds / prompts_.tokens;
  }
  rates.base_seconds = std::max(0.0, decodes_.seconds - rates.token_seconds * decodes_.tokens);
  return rates;
}

}  // namespace ferrite

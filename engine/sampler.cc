#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/logit_adjuster.h"
#include "engine/random.h"

namespace ferrite {
namespace {

constexpr float kBarred = -std::numeric_limits<float>::infinity();
// How many candidates the first partial sort puts in order, and the factor by which it grows. Real
// distributions rarely need more than the first round.
constexpr size_t kFirstSorted = 64;
constexpr size_t kSortedGrowth = 8;
constexpr size_t kUsuallyBarred = 32;

// The lowest id among the largest logits. NaN never compares greater, so it is never chosen; a row
// of nothing but NaN and -inf gives token 0.
TokenId ArgMax(std::span<const float> logits) {
  size_t best = 0;
  float best_logit = kBarred;
  for (size_t id = 0; id < logits.size(); ++id) {
    if (logits[id] > best_logit) {
      best = id;
      best_logit = logits[id];
    }
  }
  return static_cast<TokenId>(best);
}

}  // namespace

// Puts candidates in order (logit descending, then id) only as far as somebody looks.
class Sampler::Walk {
 public:
  explicit Walk(std::vector<Candidate>* candidates) : candidates_(*candidates) {}

  static bool Before(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  }

  size_t size() const { return candidates_.size(); }

  const Candidate& operator[](size_t index) {
    while (index >= sorted_) {
      Grow();
    }
    return candidates_[index];
  }

 private:
  void Grow() {
    const auto begin = candidates_.begin();
    const size_t end =
        std::min(candidates_.size(), sorted_ == 0 ? kFirstSorted : sorted_ * kSortedGrowth);
    if (end < candidates_.size()) {
      std::nth_element(begin + sorted_, begin + end, candidates_.end(), Before);
    }
    std::sort(begin + sorted_, begin + end, Before);
    sorted_ = end;
  }

  std::vector<Candidate>& candidates_;
  size_t sorted_ = 0;
};

Sampler::Sampler(int32_t vocab_size) : weights_(vocab_size) {
  barred_.reserve(kUsuallyBarred);
  candidates_.reserve(vocab_size);
}

TokenId Sampler::Sample(std::span<float> logits, const SamplingParams& params, int32_t output_index,
                        const TokenCounts& counts) {
  if (params.adjusts_logits()) {
    adjusted_.assign(logits.begin(), logits.end());
    AdjustLogits(params, counts, adjusted_);
    logits = adjusted_;
  }
  if (output_index < params.min_new_tokens) {
    Bar(logits, params.end_token_ids);
  }
  const TokenId token = Choose(logits, params, output_index);
  Unbar(logits);
  return token;
}

void Sampler::Bar(std::span<float> logits, std::span<const TokenId> ids) {
  for (const TokenId id : ids) {
    if (id >= 0 && static_cast<size_t>(id) < logits.size()) {
      barred_.push_back({logits[id], id});
      logits[id] = kBarred;
    }
  }
}

// Backwards, since an id may have been named twice.
void Sampler::Unbar(std::span<float> logits) {
  for (; !barred_.empty(); barred_.pop_back()) {
    logits[barred_.back().id] = barred_.back().logit;
  }
}

TokenId Sampler::Choose(std::span<const float> logits, const SamplingParams& params,
                        int32_t output_index) {
  const TokenId likeliest = ArgMax(logits);
  const float max_logit = logits[likeliest];
  // An infinite or NaN maximum leaves no distribution to draw from.
  if (!(params.temperature > 0) || !std::isfinite(max_logit)) {
    return likeliest;
  }
  double total = Weigh(logits, max_logit, params);
  if (params.top_p < 1.0f) {
    DropHopelessTail(total, params.top_p);
  }

  Walk walk(&candidates_);
  size_t kept = walk.size();
  if (params.top_p < 1.0f || params.min_p > 0.0f) {
    const double enough =
        params.top_p < 1.0f ? params.top_p * total : std::numeric_limits<double>::infinity();
    total = 0;
    for (kept = 0; kept < walk.size() && total < enough; ++kept) {
      const double weight = weights_[walk[kept].id];
      if (weight < params.min_p) {
        break;
      }
      total += weight;
    }
  }

  const double target =
      total * UniformDraw(params.seed, params.sample_index, static_cast<uint32_t>(output_index));
  TokenId chosen = likeliest;
  double passed = 0;
  for (size_t i = 0; i < kept; ++i) {
    chosen = walk[i].id;
    passed += weights_[chosen];
    if (passed > target) {
      break;
    }
  }
  return chosen;
}

// Fills weights_ (by id, relative to the likeliest token's 1) and candidates_ with what top_k keeps
// of the tokens that have any weight; returns their sum.
double Sampler::Weigh(std::span<const float> logits, float max_logit,
                      const SamplingParams& params) {
  candidates_.clear();
  for (size_t id = 0; id < logits.size(); ++id) {
    // Subtracting before dividing keeps a tiny temperature from overflowing.
    const double weight =
        std::exp(static_cast<double>((logits[id] - max_logit) / params.temperature));
    if (weight > 0) {  // false for NaN
      weights_[id] = weight;
      candidates_.push_back({logits[id], static_cast<TokenId>(id)});
    }
  }
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + params.top_k, candidates_.end(),
                     Walk::Before);
    candidates_.resize(params.top_k);
  }
  double total = 0;
  for (const Candidate& candidate : candidates_) {
    total += weights_[candidate.id];
  }
  return total;
}

float Sampler::Logprobs(std::span<const float> logits, TokenId token, std::span<TokenLogprob> top) {
  const float max_logit = logits[ArgMax(logits)];
  double total = 0;
  for (const float logit : logits) {
    const double weight = std::exp(static_cast<double>(logit) - max_logit);
    total += weight > 0 ? weight : 0;  // NaN is nothing
  }
  const double normalizer = max_logit + std::log(total);
  const auto logprob = [&](float logit) { return static_cast<float>(logit - normalizer); };

  // Sorted by insertion: almost every token fails the first comparison. NaN, like -inf, comes last.
  const auto value = [&](TokenId id) { return std::isnan(logits[id]) ? kBarred : logits[id]; };
  for (size_t id = 0, held = 0; !top.empty() && id < logits.size(); ++id) {
    const auto candidate = static_cast<TokenId>(id);
    size_t at = held;
    while (at > 0 && value(candidate) > value(top[at - 1].id)) {
      --at;
    }
    if (at == top.size()) {
      continue;
    }
    held = std::min(held + 1, top.size());
    std::move_backward(top.begin() + at, top.begin() + held - 1, top.begin() + held);
    top[at].id = candidate;
  }
  for (TokenLogprob& entry : top) {
    entry.logprob = logprob(logits[entry.id]);
  }
  return logprob(logits[token]);
}

// Removes candidates so light that all of them together could not make up the mass that top_p cuts
// off: the smallest set that reaches top_p lies among the rest, and sorting those is cheaper.
void Sampler::DropHopelessTail(double total, float top_p) {
  // Half of the bound, so that rounding can never cut into the kept set.
  const double bound = 0.5 * (1.0 - top_p) * total / static_cast<double>(candidates_.size());
  std::erase_if(candidates_, [&](const Candidate& c) { return weights_[c.id] < bound; });
}

}  // namespace ferrite

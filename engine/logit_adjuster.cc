#include "engine/logit_adjuster.h"

#include <limits>

namespace ferrite {
namespace {

constexpr float kNeverSampled = -std::numeric_limits<float>::infinity();

bool IsIn(std::span<const float> logits, TokenId id) {
  return id >= 0 && static_cast<size_t>(id) < logits.size();
}

void Penalize(const SamplingParams& params, const TokenCounts& counts, std::span<float> logits) {
  counts.ForEach([&](TokenId id, int32_t in_output) {
    if (!IsIn(logits, id)) {
      return;
    }
    float& logit = logits[id];
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (in_output > 0) {
      logit -= static_cast<float>(in_output) * params.frequency_penalty + params.presence_penalty;
    }
  });
}

// `allowed` is in ascending order.
void BarAllBut(std::span<const TokenId> allowed, std::span<float> logits) {
  size_t next = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    while (next < allowed.size() &&
           static_cast<int64_t>(allowed[next]) < static_cast<int64_t>(id)) {
      ++next;
    }
    if (next == allowed.size() || static_cast<size_t>(allowed[next]) != id) {
      logits[id] = kNeverSampled;
    }
  }
}

}  // namespace

void AdjustLogits(const SamplingParams& params, const TokenCounts& counts,
                  std::span<float> logits) {
  if (params.counts_tokens()) {
    Penalize(params, counts, logits);
  }
  for (const LogitBias& bias : params.logit_bias) {
    if (IsIn(logits, bias.id)) {
      logits[bias.id] += bias.bias;
    }
  }
  if (!params.allowed_token_ids.empty()) {
    BarAllBut(params.allowed_token_ids, logits);
  }
  for (const TokenId id : params.banned_token_ids) {
    if (IsIn(logits, id)) {
      logits[id] = kNeverSampled;
    }
  }
}

}  // namespace ferrite

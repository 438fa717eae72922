// Chooses a token from one row of logits on the host; the reference for every backend's sampler.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/batch.h"
#include "engine/ids.h"
#include "engine/sampling_params.h"
#include "engine/token_counts.h"

namespace ferrite {

// Thread-compatible; one per thread, so that its scratch is reused and steady state allocates
// nothing.
class Sampler {
 public:
  explicit Sampler(int32_t vocab_size);

  // The token that `params` chooses from `logits` ([vocab_size] fp32, in the end as they were).
  // `output_index` counts the tokens the sequence has generated before this one, and picks the
  // random number; `counts` are those of the sequence so far, of use if `params` counts tokens.
  //
  // In order: logits are adjusted (logit_adjuster.h); end tokens are barred while output_index <
  // min_new_tokens; temperature 0 takes the likeliest token, ties to the lowest id; else logits are
  // divided by the temperature; top_k, then top_p (the smallest set whose probability, renormalised
  // after top_k, reaches it), then min_p (relative to the likeliest token) cut the candidates; one
  // uniform number picks among the rest, walked from the likeliest down, ties by id.
  TokenId Sample(std::span<float> logits, const SamplingParams& params, int32_t output_index,
                 const TokenCounts& counts = {});

  // The log-probability of `token`, and in `top` those of as many of the likeliest tokens as it has
  // room for, ties by id; `top` has at most vocab_size entries. Sums are in double. Logits are
  // finite; with others the ids are still distinct tokens.
  static float Logprobs(std::span<const float> logits, TokenId token, std::span<TokenLogprob> top);

 private:
  struct Candidate {
    float logit;
    TokenId id;
  };
  class Walk;

  void Bar(std::span<float> logits, std::span<const TokenId> ids);
  void Unbar(std::span<float> logits);
  TokenId Choose(std::span<const float> logits, const SamplingParams& params, int32_t output_index);
  double Weigh(std::span<const float> logits, float max_logit, const SamplingParams& params);
  void DropHopelessTail(double total, float top_p);

  std::vector<float> adjusted_;    // [vocab_size] once a sequence has wanted it
  std::vector<Candidate> barred_;  // with their logits, in the order of barring
  std::vector<Candidate> candidates_;
  std::vector<double> weights_;  // [vocab_size], by id
};

}  // namespace ferrite

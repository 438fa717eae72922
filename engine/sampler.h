// Chooses a token from one row of logits on the host; the reference for every backend's sampler.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/ids.h"
#include "engine/sampling_params.h"

namespace ferrite {

// Thread-compatible; one per thread, so that its scratch is reused and steady state allocates
// nothing.
class Sampler {
 public:
  explicit Sampler(int32_t vocab_size);

  // The token that `params` chooses from `logits` ([vocab_size] fp32, overwritten). `output_index`
  // counts the tokens the sequence has generated before this one, and picks the random number.
  //
  // In order: end tokens are barred while output_index < min_new_tokens; temperature 0 takes the
  // likeliest token, ties to the lowest id; else logits are divided by the temperature; top_k, then
  // top_p (the smallest set whose probability, renormalised after top_k, reaches it), then min_p
  // (relative to the likeliest token) cut the candidates; one uniform number picks among the rest,
  // walked from the likeliest down, ties by id.
  TokenId Sample(std::span<float> logits, const SamplingParams& params, int32_t output_index);

 private:
  struct Candidate {
    float logit;
    TokenId id;
  };
  class Walk;

  double Weigh(std::span<const float> logits, float max_logit, const SamplingParams& params);
  void DropHopelessTail(double total, float top_p);

  std::vector<Candidate> candidates_;
  std::vector<double> weights_;  // [vocab_size], by id
};

}  // namespace ferrite

// How one sequence's next token is chosen; resolved (no field unset) and validated at the edge.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/ids.h"

namespace ferrite {

struct LogitBias {
  TokenId id = 0;
  float bias = 0;
};

struct SamplingParams {
  static constexpr int32_t kMaxLogprobs = 20;

  float temperature = 1.0f;  // 0 is greedy, ties to the lowest id
  int32_t top_k = 0;         // 0 keeps all
  float top_p = 1.0f;        // (0, 1]; 1 keeps all
  float min_p = 0.0f;        // [0, 1]; 0 keeps all
  uint64_t seed = 0;
  uint32_t sample_index = 0;  // which of n parallel samples this sequence is

  // While fewer than min_new_tokens have been generated, the tokens of `end_token_ids` (the model's
  // end tokens and the request's stop tokens) cannot be sampled.
  int32_t min_new_tokens = 0;
  std::vector<TokenId> end_token_ids = {};

  // How logits are changed before anything else (logit_adjuster.h has the order). Penalties look at
  // the tokens of the sequence so far: repetition at prompt and output, the others at the output.
  float repetition_penalty = 1.0f;              // above 0; 1 changes nothing
  float frequency_penalty = 0.0f;               // subtracted as often as the token occurs
  float presence_penalty = 0.0f;                // subtracted if it occurs
  std::vector<LogitBias> logit_bias = {};       // added; no id twice
  std::vector<TokenId> allowed_token_ids = {};  // ascending; empty: all
  std::vector<TokenId> banned_token_ids = {};   // ascending

  bool counts_tokens() const {
    return repetition_penalty != 1.0f || frequency_penalty != 0.0f || presence_penalty != 0.0f;
  }
  bool adjusts_logits() const {
    return counts_tokens() || !logit_bias.empty() || !allowed_token_ids.empty() ||
           !banned_token_ids.empty();
  }

  // Which log-probabilities come with each token: -1 none; 0 its own; up to kMaxLogprobs, also
  // those of so many likeliest tokens.
  int32_t num_logprobs = -1;
};

}  // namespace ferrite

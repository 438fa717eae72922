// A request as the engine takes it: tokenised, every knob resolved and in range.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/clock.h"
#include "engine/ids.h"
#include "engine/pooling.h"
#include "engine/sampling_params.h"

namespace ferrite {

struct EngineRequest {
  std::string id;               // unique among the requests in flight
  std::string client;           // whose it is: clients get equal shares of a worker
  std::vector<TokenId> prompt;  // at least one token
  SamplingParams sampling;      // its end_token_ids end the generation
  int32_t max_new_tokens = 0;   // at least 1; 0 with pooling
  std::vector<std::string> stop_strings;
  bool include_stop_string = false;
  bool skip_special_tokens = true;
  // Log-probabilities of the prompt's tokens from the second on, given those before: -1 none; 0
  // their own; up to SamplingParams::kMaxLogprobs, also those of so many likeliest in each place.
  int32_t num_prompt_logprobs = -1;
  // Other than kNone: nothing is generated, and the outcome is the prompt's vector.
  Pooling pooling = Pooling::kNone;
  bool cache_prompt = true;  // take what is in the prefix cache, and leave it what is computed
  std::string cache_salt;    // only requests with the same one share
  int32_t priority = 0;      // higher first
  Clock::time_point received = Clock::now();
  Clock::time_point deadline = Clock::time_point::max();
};

enum class FinishReason { kNone, kStop, kLength, kAborted };  // kNone: pooled, or failed

}  // namespace ferrite

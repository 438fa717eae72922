// A generation request as the engine takes it: tokenised, every knob resolved and in range.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/clock.h"
#include "engine/ids.h"
#include "engine/sampling_params.h"

namespace ferrite {

struct GenerateRequest {
  std::string id;               // unique among the requests in flight
  std::vector<TokenId> prompt;  // at least one token
  SamplingParams sampling;      // its end_token_ids end the generation
  int32_t max_new_tokens = 0;   // at least 1
  std::vector<std::string> stop_strings;
  bool include_stop_string = false;
  bool skip_special_tokens = true;
  int32_t priority = 0;  // higher first
  Clock::time_point received = Clock::now();
  Clock::time_point deadline = Clock::time_point::max();
};

enum class FinishReason { kNone, kStop, kLength, kAborted };

}  // namespace ferrite

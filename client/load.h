// A closed or open loop of GenerateStream calls, and what it measured.
#pragma once

#include <grpcpp/channel.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "client/load_result.h"
#include "ferrite/v1/inference.pb.h"

namespace ferrite {

struct LoadPlan {
  int64_t first_index = 0;
  int64_t count = 0;  // conversations at most, with the indices from first_index
  // So long after the start the last request is sent; those in flight are waited for.
  double duration_seconds = std::numeric_limits<double>::infinity();
  // Closed loop: conversations in flight until fewer than that are left.
  int32_t concurrency = 1;
  // Open loop, if above 0: so many conversations begin a second on average, as a Poisson process
  // drawn from arrival_seed, whatever is still in flight.
  double rate = 0;
  uint64_t arrival_seed = 0;
  // A thread drives each, with its share of the streams; there is at least one.
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  // Turn `turn` of a conversation, with token ids as its prompt and max_new_tokens, which it must
  // give; `before` is the prompt and the answer of the turn before. Nothing ends the conversation.
  // Called from those threads.
  std::function<std::optional<v1::GenerateRequest>(int64_t index, int32_t turn,
                                                   const std::vector<int32_t>& before)>
      make_request;
  int32_t turns = 1;                                                 // at most
  int32_t expected_tokens = 0;                                       // of an output, to make room
  double timeout_seconds = std::numeric_limits<double>::infinity();  // of each request
  int64_t num_samples = 0;  // completed requests, drawn at random, that are kept
};

struct LoadProgress {
  int64_t ended = 0;  // conversations
  int64_t output_tokens = 0;
  double seconds = 0;
};

// Sends until `count` conversations have begun or the duration is over, and waits for what is in
// flight; a request that fails is counted, and ends its conversation. An OK stream with another
// number of tokens is a failure, INTERNAL. `on_tick` is called about ten times a second; once it
// says false, what is in flight is cancelled.
LoadResult RunLoad(const LoadPlan& plan, const std::function<bool(const LoadProgress&)>& on_tick);

}  // namespace ferrite

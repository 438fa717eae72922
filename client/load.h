// A closed loop of GenerateStream calls, and what it measured.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ferrite/v1/inference.pb.h"

namespace ferrite {

struct LoadPlan {
  int64_t first_index = 0;
  int64_t count = 0;        // requests, with the indices from first_index
  int32_t concurrency = 1;  // streams in flight until fewer requests than that are left
  // A thread drives each, with its share of the streams; there is at least one.
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  // The request of one index. Called from those threads.
  std::function<v1::GenerateRequest(int64_t index)> make_request;
  int32_t prompt_tokens = 0;                                         // of each request
  int32_t output_tokens = 0;                                         // that each request must give
  double timeout_seconds = std::numeric_limits<double>::infinity();  // of each request
  int64_t keep_ids_below = 0;  // the output of requests with a lower index is kept
};

struct LoadFailures {
  int64_t count = 0;
  std::string message;  // of the first
};

// Times are in seconds of the monotonic clock, taken when the message reached the program. Tokens
// and their times count as they arrive, also those of requests that fail later or are cut short.
struct LoadResult {
  int64_t completed = 0;
  int64_t cut_short = 0;  // in flight when the loop was stopped
  std::map<grpc::StatusCode, LoadFailures> failures;
  double seconds = 0;        // from the first request to the end of the last
  int64_t input_tokens = 0;  // prompts of the requests that gave a token
  int64_t cached_tokens = 0;
  int64_t output_tokens = 0;
  int64_t token_messages = 0;        // that held output tokens
  std::vector<double> first_token;   // from sending to the first message with a token
  std::vector<double> message_gaps;  // between two messages with tokens
  // The same gaps a token: one of g seconds before a message of k tokens is k times g / k. So the
  // tokens of a stream's first message are not in it.
  std::vector<double> inter_token;
  std::vector<double> end_to_end;               // from sending to the status, of completed requests
  std::map<int64_t, std::vector<int32_t>> ids;  // by index, of completed requests
  double user_seconds = 0;                      // CPU time of this process during the loop
  double system_seconds = 0;

  int64_t failed() const;
  // The commonest failure; OK without one.
  grpc::Status worst() const;
};

struct LoadProgress {
  int64_t ended = 0;
  int64_t output_tokens = 0;
  double seconds = 0;
};

// Keeps `concurrency` requests in flight until `count` have ended; one that fails is counted and
// the next one sent. An OK stream with another number of tokens is a failure, INTERNAL. `on_tick`
// is called about ten times a second; once it says false, what is in flight is cancelled.
LoadResult RunLoad(const LoadPlan& plan, const std::function<bool(const LoadProgress&)>& on_tick);

}  // namespace ferrite

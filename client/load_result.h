// What a load of GenerateStream calls measured.
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "ferrite/v1/inference.pb.h"

namespace ferrite {

struct LoadFailures {
  int64_t count = 0;
  std::string message;          // of the first
  std::vector<double> seconds;  // from sending to the status
};

// A request that gave all that it should.
struct LoadTimes {
  double first_token = 0;
  double inter_token = 0;  // mean; 0 if all tokens came in one message
  double end_to_end = 0;   // from sending to the status
  int64_t output_tokens = 0;
};

// A completed request and its answer.
struct LoadSample {
  int64_t index = 0;
  v1::GenerateRequest request;
  std::vector<int32_t> ids;
};

// Times are in seconds of the monotonic clock, taken when the message reached the program. In an
// open loop "sending" is when a conversation was due to begin, so that a late client cannot hide
// what a user would wait. Tokens and their times count as they arrive, also those of requests that
// fail later or are cut short.
struct LoadResult {
  int64_t started = 0;  // conversations
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
  std::vector<double> send_lag;            // open loop: from being due to being sent
  std::vector<LoadTimes> times;            // of completed requests
  std::map<uint64_t, LoadSample> samples;  // in a random order
  double user_seconds = 0;                 // CPU time of this process during the loop
  double system_seconds = 0;

  int64_t failed() const;
  // The commonest failure; OK without one.
  grpc::Status worst() const;
};

// Keeps `sample`, the `number`-th request of the run, or another one: of all the numbers given, the
// `most` that a fixed random order puts first.
void KeepSample(uint64_t number, LoadSample sample, int64_t most,
                std::map<uint64_t, LoadSample>* samples);

// Adds what another thread of the same load measured; `seconds` and CPU times are not of a thread.
// At most `num_samples` samples stay.
void Merge(LoadResult from, int64_t num_samples, LoadResult* to);

}  // namespace ferrite

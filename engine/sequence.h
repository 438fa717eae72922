// One request inside a worker: its tokens, its text so far, and where the scheduler has it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/batch.h"
#include "engine/clock.h"
#include "engine/prefix_index.h"
#include "engine/request.h"
#include "engine/stop_strings.h"
#include "engine/token_stream.h"
#include "engine/tokenizer/incremental_decoder.h"
#include "engine/waiting_line.h"

namespace ferrite {

// What a scheduler keeps of a sequence. Only the scheduler reads and writes it.
struct SchedulingState {
  enum class Phase {
    kWaiting,     // holds nothing; not yet started, or preempted
    kRunning,     // has a slot and blocks, and is in the steps to come
    kPreempting,  // becomes kWaiting once its last launched step has been waited for
    kFinished,    // is freed once its last launched step has been waited for
  };
  Phase phase = Phase::kWaiting;
  PlaceInLine place;
  SeqSlot slot;                   // while it holds one
  std::vector<BlockId> blocks;    // its block table
  int32_t num_computed = 0;       // tokens whose KV is written by steps launched so far
  int32_t steps_outstanding = 0;  // launched steps that include it and were not waited for
  int32_t samples_in_flight = 0;  // of those, how many sample a token for it
  int32_t sample_row = -1;        // its row in the last launched step, while in flight
  uint64_t last_planned_step = 0;
  // Sequences with the same root share the KV blocks of what they have in common; 0 shares with
  // none. `keep_prefix`: also with those that come when this one is gone.
  PrefixId prefix_root = 0;
  bool keep_prefix = false;
  Prefix prefix;            // of its first num_indexed blocks
  int32_t num_indexed = 0;  // blocks that others can find, or whose like they can
};

// Thread-compatible; made where the request is submitted, then owned by a worker. All memory that
// it grows into is reserved at construction.
class Sequence {
 public:
  // `tokenizer` must outlive the sequence.
  Sequence(EngineRequest request, const Tokenizer& tokenizer, int32_t block_size,
           std::shared_ptr<TokenStream> stream);

  // Takes the next generated token, with its log-probabilities (null if it has none), and hands its
  // text to the stream. Returns whether the listener of the stream is to be told; finished() says
  // whether this token was the last.
  bool AcceptToken(TokenId token, const LogprobView* logprobs, Clock::time_point now);

  // Takes the log-probabilities of prompt token num_prompt_logprobs() + 1, and hands those of the
  // whole prompt to the stream when they are complete. Same return value.
  bool AcceptPromptLogprobs(const LogprobView& logprobs);

  // Takes the vector of a request that pools, and finishes. Same return value.
  bool AcceptEmbedding(std::span<const float> values, Clock::time_point now);

  // Ends without a further token: for a status (CANCELLED, ...) or an abort. Same return value.
  bool EndWith(absl::Status status, FinishReason reason, Clock::time_point now);

  // `cached_tokens` of the prompt need not be computed.
  void MarkStarted(int32_t cached_tokens, Clock::time_point now);

  const EngineRequest& request() const { return request_; }
  const std::shared_ptr<TokenStream>& stream() const { return stream_; }
  const std::vector<TokenId>& tokens() const { return tokens_; }  // prompt, then output
  int32_t num_tokens() const { return static_cast<int32_t>(tokens_.size()); }
  int32_t num_generated() const { return num_tokens() - num_prompt_tokens(); }
  int32_t num_prompt_tokens() const { return static_cast<int32_t>(request_.prompt.size()); }
  // The tokens that admission and the choice of a worker count: samples of one prompt count it
  // once.
  int32_t num_waiting_tokens() const {
    return request_.sampling.sample_index == 0 ? num_prompt_tokens() : 0;
  }
  // The most that is to be computed; once it has started, what was cached is left out.
  int64_t max_tokens() const {
    return int64_t{num_waiting_tokens()} + request_.max_new_tokens - saved_tokens();
  }
  int32_t saved_tokens() const { return std::min(cached_tokens_, num_waiting_tokens()); }
  // Whether what others have computed of the same prompt can stand in for its own computing.
  bool takes_prefixes() const {
    return scheduling.prefix_root != 0 && !wants_prompt_logprobs() &&
           request_.pooling != Pooling::kMean;
  }
  int32_t cached_tokens() const { return cached_tokens_; }
  bool pools() const { return request_.pooling != Pooling::kNone; }
  int32_t num_prompt_logprobs() const { return num_prompt_logprobs_; }
  // Whether some of the prompt's log-probabilities that are asked for have not come yet.
  bool wants_prompt_logprobs() const {
    return request_.num_prompt_logprobs >= 0 && num_prompt_logprobs_ + 1 < num_prompt_tokens();
  }
  bool started() const { return started_ != Clock::time_point(); }
  bool finished() const { return finished_; }
  Clock::time_point started_at() const { return started_; }
  Clock::time_point last_token_at() const { return last_token_; }  // once it has generated
  // Once it has finished: when, and how.
  Clock::time_point finished_at() const { return finished_at_; }
  absl::StatusCode end_code() const { return end_code_; }
  FinishReason finish_reason() const { return finish_reason_; }

  SchedulingState scheduling;

 private:
  bool IsEndToken(TokenId token) const;
  bool Finish(Completion completion, Clock::time_point now, std::span<const float> embedding = {});

  EngineRequest request_;
  std::shared_ptr<TokenStream> stream_;
  IncrementalDecoder decoder_;
  StopStringMatcher stop_strings_;
  std::vector<TokenId> tokens_;
  std::string piece_;            // scratch: the text of one token
  std::string text_;             // scratch: what of it is decided
  LogprobList prompt_logprobs_;  // until they are complete
  int32_t num_prompt_logprobs_ = 0;
  int32_t cached_tokens_ = 0;
  bool finished_ = false;
  Clock::time_point started_;
  Clock::time_point first_token_;
  Clock::time_point last_token_;
  Clock::time_point finished_at_;
  absl::StatusCode end_code_ = absl::StatusCode::kOk;
  FinishReason finish_reason_ = FinishReason::kNone;
};

}  // namespace ferrite

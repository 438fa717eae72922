// The mailbox between a worker and whoever reads one request's output.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/batch.h"
#include "engine/ids.h"
#include "engine/mutex.h"
#include "engine/request.h"

namespace ferrite {

// What has come since the last Take. The text always ends between characters.
struct OutputDelta {
  std::string text;
  std::vector<TokenId> token_ids;
  LogprobList logprobs;          // of token_ids, if the request asks for them
  LogprobList prompt_logprobs;   // all at once, before the first token
  std::vector<float> embedding;  // [hidden_size], with the end of a request that pools

  // More than a consumer that keeps up finds at a time, at some four bytes of text a token.
  static constexpr int32_t kUsualTokens = 64;

  bool empty() const { return text.empty() && token_ids.empty() && prompt_logprobs.empty(); }
  // `num_logprobs` as in SamplingParams.
  void Reserve(int32_t num_tokens, int32_t num_logprobs);
  void Clear();
};

// How a request ended.
struct Completion {
  // OK with a finish reason, or why there is none: CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE (the
  // engine is going down) or INTERNAL.
  absl::Status status;
  FinishReason reason = FinishReason::kNone;
  TokenId stop_token = -1;  // what matched, if reason is kStop: a token, or else a string
  std::string stop_string;
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;  // of those, taken from the prefix cache
  int32_t completion_tokens = 0;
  double queue_seconds = 0;                // until the first step that included the request
  double time_to_first_token_seconds = 0;  // 0 if there was none
  double total_seconds = 0;
};

// Thread-safe. The producer never blocks on the consumer: while the consumer is busy, output merges
// into the pending delta.
class TokenStream {
 public:
  // Told that a Take would return something. Called on a delivery thread; must not block.
  class Listener {
   public:
    virtual ~Listener() = default;
    virtual void OnOutput() = 0;
  };

  // What the listener is told of: every output, or only the end.
  enum class Mode { kEveryOutput, kEndOnly };

  explicit TokenStream(Mode mode) : mode_(mode) {}

  // Makes room for the output of a request that generates at most this many tokens, each with
  // SamplingParams::num_logprobs, so that the producer's appends do not allocate while the consumer
  // keeps up.
  void Reserve(int32_t max_new_tokens, int32_t num_logprobs);

  // --- consumer ---

  // The stream keeps no listener alive. Set before the stream is submitted.
  void SetListener(std::weak_ptr<Listener> listener);

  // Swaps the pending output into `delta` (cleared first; both keep their capacity) and says
  // whether the stream has ended, in which case completion() may be read. If there is nothing to
  // take, the listener will be told when there is.
  bool Take(OutputDelta* delta);

  // Whether Take would return true.
  bool ended();

  // Set once Take has returned true.
  const Completion& completion() const { return completion_; }

  // The consumer has left, or an operator ends the request: the worker drops it at the next step.
  void Cancel() { RequestStop(StopRequest::kCancel); }
  void Abort() { RequestStop(StopRequest::kAbort); }

  // --- whoever supervises the producer ---

  // Ends the stream in place of a producer that may never come back, and tells the listener; if the
  // producer does come back, it finds itself cancelled, and what it appends is dropped. False if
  // the stream had ended already.
  bool Fail(absl::Status status);

  // --- producer ---

  enum class StopRequest { kNone, kCancel, kAbort };
  StopRequest stop_request() const { return stop_request_.load(std::memory_order_acquire); }

  // All three return whether the listener is to be told, by Notify, which the producer leaves to a
  // delivery thread. `logprobs` is null for a request that does not ask; the prompt's are swapped
  // out of `prompt_logprobs`; `embedding` is that of a request that pools.
  [[nodiscard]] bool Append(std::string_view text, TokenId token,
                            const LogprobView* logprobs = nullptr);
  [[nodiscard]] bool AppendPromptLogprobs(LogprobList* prompt_logprobs);
  [[nodiscard]] bool Finish(std::string_view text, Completion completion,
                            std::span<const float> embedding = {});
  void Notify();

 private:
  void RequestStop(StopRequest request);

  const Mode mode_;
  std::atomic<StopRequest> stop_request_{StopRequest::kNone};
  Mutex mutex_;
  std::weak_ptr<Listener> listener_ ABSL_GUARDED_BY(mutex_);
  OutputDelta pending_ ABSL_GUARDED_BY(mutex_);
  bool armed_ ABSL_GUARDED_BY(mutex_) = true;  // the consumer waits to be told
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  Completion completion_;  // written once, with finished_
};

}  // namespace ferrite

#include "engine/sequence.h"

#include <algorithm>
#include <utility>

namespace ferrite {

Sequence::Sequence(EngineRequest request, const Tokenizer& tokenizer, int32_t block_size,
                   std::shared_ptr<TokenStream> stream)
    : request_(std::move(request)),
      stream_(std::move(stream)),
      decoder_(tokenizer, request_.skip_special_tokens),
      stop_strings_(request_.stop_strings, request_.include_stop_string) {
  const int64_t longest = int64_t{num_prompt_tokens()} + request_.max_new_tokens;
  tokens_.reserve(longest);
  tokens_ = request_.prompt;
  scheduling.blocks.reserve((longest + block_size - 1) / block_size);
  if (pools()) {
    return;
  }
  stream_->Reserve(request_.max_new_tokens, request_.sampling.num_logprobs);
  decoder_.Prime(request_.prompt);
  piece_.reserve(256);
  text_.reserve(256);
  if (request_.num_prompt_logprobs >= 0) {
    prompt_logprobs_.Reserve(num_prompt_tokens(), request_.num_prompt_logprobs);
  }
}

bool Sequence::AcceptToken(TokenId token, const LogprobView* logprobs, Clock::time_point now) {
  if (num_generated() == 0) {
    first_token_ = now;
  }
  last_token_ = now;
  tokens_.push_back(token);
  const bool may_stop = num_generated() >= request_.sampling.min_new_tokens;

  Completion completion;
  if (may_stop && IsEndToken(token)) {
    completion.reason = FinishReason::kStop;
    completion.stop_token = token;
    const bool tell = stream_->Append({}, token, logprobs);
    return Finish(std::move(completion), now) || tell;
  }
  piece_.clear();
  text_.clear();
  decoder_.Append(token, &piece_);
  const std::string* stop = stop_strings_.Append(piece_, may_stop, &text_);
  const bool tell = stream_->Append(text_, token, logprobs);
  if (stop != nullptr) {
    completion.reason = FinishReason::kStop;
    completion.stop_string = *stop;
    return Finish(std::move(completion), now) || tell;
  }
  if (num_generated() == request_.max_new_tokens) {
    completion.reason = FinishReason::kLength;
    return Finish(std::move(completion), now) || tell;
  }
  return tell;
}

bool Sequence::AcceptPromptLogprobs(const LogprobView& logprobs) {
  prompt_logprobs_.Append(logprobs.own, logprobs.top);
  ++num_prompt_logprobs_;
  return !wants_prompt_logprobs() && stream_->AppendPromptLogprobs(&prompt_logprobs_);
}

bool Sequence::AcceptEmbedding(std::span<const float> values, Clock::time_point now) {
  return Finish(Completion(), now, values);
}

bool Sequence::EndWith(absl::Status status, FinishReason reason, Clock::time_point now) {
  Completion completion;
  completion.status = std::move(status);
  completion.reason = reason;
  return Finish(std::move(completion), now);
}

void Sequence::MarkStarted(int32_t cached_tokens, Clock::time_point now) {
  if (!started()) {
    started_ = now;
    cached_tokens_ = cached_tokens;
  }
}

bool Sequence::IsEndToken(TokenId token) const {
  const std::vector<TokenId>& ends = request_.sampling.end_token_ids;
  return std::find(ends.begin(), ends.end(), token) != ends.end();
}

// Releases the text still held back, unless a stop string has decided that it is dropped.
bool Sequence::Finish(Completion completion, Clock::time_point now,
                      std::span<const float> embedding) {
  finished_ = true;
  text_.clear();
  if (completion.stop_string.empty() && !pools()) {
    piece_.clear();
    decoder_.Finish(&piece_);
    if (const std::string* stop =
            stop_strings_.Append(piece_, completion.reason == FinishReason::kLength, &text_);
        stop != nullptr) {
      completion.reason = FinishReason::kStop;
      completion.stop_string = *stop;
    } else {
      stop_strings_.Finish(&text_);
    }
  }
  completion.prompt_tokens = num_prompt_tokens();
  completion.cached_tokens = cached_tokens_;
  completion.completion_tokens = num_generated();
  completion.queue_seconds = SecondsBetween(request_.received, started() ? started_ : now);
  if (num_generated() > 0) {
    completion.time_to_first_token_seconds = SecondsBetween(request_.received, first_token_);
  }
  completion.total_seconds = SecondsBetween(request_.received, now);
  finished_at_ = now;
  end_code_ = completion.status.code();
  finish_reason_ = completion.reason;
  return stream_->Finish(text_, std::move(completion), embedding);
}

}  // namespace ferrite

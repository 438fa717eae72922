#include "server/sample_outputs.h"

#include <algorithm>
#include <utility>

namespace ferrite {
namespace {

v1::FinishReason ToWire(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kAborted:
      return v1::FINISH_REASON_ABORTED;
    case FinishReason::kNone:
      break;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

// For the log; null for what has no reason.
const char* ReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAborted:
      return "aborted";
    case FinishReason::kNone:
      break;
  }
  return nullptr;
}

void FillEnd(const Completion& completion, v1::Choice* choice) {
  choice->set_finish_reason(ToWire(completion.reason));
  if (completion.reason != FinishReason::kStop) {
    return;
  }
  if (completion.stop_string.empty()) {
    choice->mutable_stop()->set_token_id(completion.stop_token);
  } else {
    choice->mutable_stop()->set_stop_string(completion.stop_string);
  }
}

}  // namespace

SampleOutputs::SampleOutputs(const Tokenizer* tokenizer, const GenerateCall& call,
                             TokenStream::Mode mode,
                             const std::weak_ptr<TokenStream::Listener>& listener)
    : tokenizer_(tokenizer),
      mode_(mode),
      return_token_ids_(call.return_token_ids),
      echo_(call.echo),
      samples_(call.num_samples),
      prompt_awaited_(call.request.num_prompt_logprobs >= 0 && call.request.prompt.size() > 1) {
  if (prompt_awaited_) {
    prompt_ = call.request.prompt;
  }
  for (int32_t i = 0; i < call.num_samples; ++i) {
    streams_.push_back(std::make_shared<TokenStream>(mode));
    streams_.back()->SetListener(listener);
  }
  delta_.Reserve(OutputDelta::kUsualTokens, call.request.sampling.num_logprobs);
}

bool SampleOutputs::TakePrompt(v1::PromptInfo* info) {
  if (!prompt_awaited_) {
    return true;
  }
  if (mode_ == TokenStream::Mode::kEndOnly && !streams_[0]->ended()) {
    return false;
  }
  first_ended_ = streams_[0]->Take(&delta_);
  if (delta_.empty() && !first_ended_) {
    return false;
  }
  FillLogprobs(prompt_, 1, delta_.prompt_logprobs, info->mutable_prompt_logprobs());
  prompt_awaited_ = false;
  holds_first_ = true;
  return true;
}

bool SampleOutputs::Take(google::protobuf::RepeatedPtrField<v1::Choice>* choices) {
  while (mode_ == TokenStream::Mode::kEndOnly &&
         choices->size() < static_cast<int>(streams_.size())) {
    choices->Add();
  }
  for (size_t i = 0; i < samples_.size(); ++i) {
    // What a sample gathers for its end stays in the memory that was reserved for it.
    if (samples_[i].ended || (mode_ == TokenStream::Mode::kEndOnly && !streams_[i]->ended())) {
      continue;
    }
    const bool held = i == 0 && std::exchange(holds_first_, false) &&
                      (first_ended_ || !delta_.token_ids.empty() || !delta_.text.empty());
    const bool ended = held ? first_ended_ : streams_[i]->Take(&delta_);
    if (ended || !delta_.empty()) {
      AddChoice(i, ended, choices);
    }
  }
  return num_ended_ == samples_.size() || !status_.ok();
}

void SampleOutputs::AddChoice(size_t index, bool ended,
                              google::protobuf::RepeatedPtrField<v1::Choice>* choices) {
  Sample& sample = samples_[index];
  v1::Choice* const choice = mode_ == TokenStream::Mode::kEndOnly
                                 ? choices->Mutable(static_cast<int>(index))
                                 : choices->Add();
  choice->set_index(static_cast<int32_t>(index));
  if (!std::exchange(sample.begun, true)) {
    choice->set_text(echo_);
  }
  choice->mutable_text()->append(delta_.text);
  num_tokens_ += static_cast<int32_t>(delta_.token_ids.size());
  if (return_token_ids_) {
    choice->mutable_token_ids()->Add(delta_.token_ids.begin(), delta_.token_ids.end());
  }
  FillLogprobs(delta_.token_ids, 0, delta_.logprobs, choice->mutable_logprobs());
  if (!ended) {
    return;
  }
  sample.ended = true;
  ++num_ended_;
  const Completion& completion = streams_[index]->completion();
  status_.Update(completion.status);
  FillEnd(completion, choice);
}

void SampleOutputs::FillLogprobs(const std::vector<TokenId>& ids, size_t first_id,
                                 const LogprobList& from,
                                 google::protobuf::RepeatedPtrField<v1::TokenLogprob>* to) const {
  const auto add = [this](TokenId id, float logprob, v1::TokenLogprob* entry) {
    entry->set_token_id(id);
    entry->set_token(tokenizer_->TokenBytes(id));
    entry->set_logprob(logprob);
  };
  for (int32_t t = 0; t < from.size(); ++t) {
    v1::TokenLogprob* const token = to->Add();
    add(ids[first_id + t], from.own[t], token);
    for (const TokenLogprob& likely : from[t].top) {
      add(likely.id, likely.logprob, token->add_top());
    }
  }
}

void SampleOutputs::FillUsage(v1::Usage* usage, v1::Timings* timings) const {
  int32_t completion_tokens = 0;
  double queue = 0;
  double first_token = 0;
  double total = 0;
  for (size_t i = 0; i < streams_.size(); ++i) {
    const Completion& completion = streams_[i]->completion();
    completion_tokens += completion.completion_tokens;
    queue = i == 0 ? completion.queue_seconds : std::min(queue, completion.queue_seconds);
    if (const double seconds = completion.time_to_first_token_seconds; seconds > 0) {
      first_token = first_token == 0 ? seconds : std::min(first_token, seconds);
    }
    total = std::max(total, completion.total_seconds);
  }
  const int32_t prompt_tokens = streams_[0]->completion().prompt_tokens;
  usage->set_prompt_tokens(prompt_tokens);
  usage->set_cached_tokens(streams_[0]->completion().cached_tokens);
  usage->set_completion_tokens(completion_tokens);
  usage->set_total_tokens(prompt_tokens + completion_tokens);
  timings->set_queue_seconds(queue);
  timings->set_time_to_first_token_seconds(first_token);
  timings->set_total_seconds(total);
}

void SampleOutputs::FillFigures(CallFigures* figures) const {
  figures->completion_tokens = num_tokens_;
  const auto earliest = [](double seconds, std::optional<double>* field) {
    *field = std::min(seconds, field->value_or(seconds));
  };
  for (size_t i = 0; i < samples_.size(); ++i) {
    if (!samples_[i].ended) {
      continue;
    }
    const Completion& completion = streams_[i]->completion();
    earliest(completion.queue_seconds, &figures->queue_seconds);
    if (completion.completion_tokens > 0) {
      earliest(completion.time_to_first_token_seconds, &figures->first_token_seconds);
    }
    if (const char* reason = ReasonName(completion.reason); reason != nullptr) {
      const bool same = figures->finish_reason == nullptr || figures->finish_reason == reason;
      figures->finish_reason = same ? reason : "several";
    }
  }
}

void SampleOutputs::Cancel() {
  for (const std::shared_ptr<TokenStream>& stream : streams_) {
    stream->Cancel();
  }
}

}  // namespace ferrite

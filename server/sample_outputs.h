// The samples of one Generate call, put together into its messages.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/ids.h"
#include "engine/token_stream.h"
#include "engine/tokenizer/tokenizer.h"
#include "ferrite/v1/inference.pb.h"
#include "server/call_log.h"
#include "server/generate_params.h"

namespace ferrite {

// Thread-compatible: a reactor's own, under its mutex.
class SampleOutputs {
 public:
  // One stream a sample. `tokenizer` must outlive it.
  SampleOutputs(const Tokenizer* tokenizer, const GenerateCall& call, TokenStream::Mode mode,
                const std::weak_ptr<TokenStream::Listener>& listener);

  const std::vector<std::shared_ptr<TokenStream>>& streams() const { return streams_; }

  // The prompt's log-probabilities, if they are asked for: whether they have come (into `info`), or
  // never will. True at once if they are not asked for.
  bool TakePrompt(v1::PromptInfo* info);

  // Takes what has come since the last Take. With Mode::kEveryOutput it adds a choice for each
  // sample that has something; a sample's last one has its finish reason. With kEndOnly `choices`,
  // the same at every call, has one choice a sample, to which it adds. True once every sample has
  // ended, or one has failed; false with no choice means that the listener will be told of more.
  bool Take(google::protobuf::RepeatedPtrField<v1::Choice>* choices);

  // Once Take has returned true: why a sample failed, or OK; and what all used together.
  const absl::Status& status() const { return status_; }
  void FillUsage(v1::Usage* usage, v1::Timings* timings) const;

  // Of what has been taken so far, into those fields of `figures` that it knows.
  void FillFigures(CallFigures* figures) const;

  // Ends the samples that have not ended.
  void Cancel();

 private:
  struct Sample {
    bool begun = false;  // has had a choice
    bool ended = false;
  };
  void AddChoice(size_t index, bool ended, google::protobuf::RepeatedPtrField<v1::Choice>* choices);
  void FillLogprobs(const std::vector<TokenId>& ids, size_t first_id, const LogprobList& from,
                    google::protobuf::RepeatedPtrField<v1::TokenLogprob>* to) const;

  const Tokenizer* const tokenizer_;
  const TokenStream::Mode mode_;
  const bool return_token_ids_;
  const std::string echo_;
  std::vector<TokenId> prompt_;  // if its log-probabilities are awaited
  std::vector<std::shared_ptr<TokenStream>> streams_;
  std::vector<Sample> samples_;
  OutputDelta delta_;
  bool prompt_awaited_ = false;
  bool holds_first_ = false;  // delta_ has output of the first sample that TakePrompt has found
  bool first_ended_ = false;
  size_t num_ended_ = 0;
  int32_t num_tokens_ = 0;  // taken
  absl::Status status_;
};

}  // namespace ferrite

#include "tests/integration/storm_jobs.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"

namespace ferrite::storm {
namespace {

constexpr float kTolerance = 1e-4f;

const char kGenerate[] = "/ferrite.v1.Inference/Generate";
const char kGenerateStream[] = "/ferrite.v1.Inference/GenerateStream";
const char kEmbed[] = "/ferrite.v1.Inference/Embed";

void AddLogprobs(const google::protobuf::RepeatedPtrField<v1::TokenLogprob>& from,
                 std::vector<float>* to) {
  for (const v1::TokenLogprob& token : from) {
    to->push_back(token.logprob());
    for (const v1::TokenLogprob& top : token.top()) to->push_back(top.logprob());
  }
}

std::string CompareNumbers(const char* what, const std::vector<float>& expected,
                           const std::vector<float>& got, bool whole, float* largest) {
  if (got.size() > expected.size() || (whole && got.size() < expected.size())) {
    return absl::StrCat(got.size(), " ", what, " instead of ", expected.size());
  }
  for (size_t i = 0; i < got.size(); ++i) {
    const float difference = std::abs(got[i] - expected[i]);
    *largest = std::max(*largest, difference);
    if (!(difference <= kTolerance)) {
      return absl::StrCat(what, " ", i, " is ", got[i], " instead of ", expected[i]);
    }
  }
  return "";
}

bool IsPrefix(const std::string& prefix, const std::string& text) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

std::string CompareSample(const Sample& expected, const Sample& got, Extent extent,
                          float* largest) {
  const bool aborted = extent == Extent::kAborted && got.reason == v1::FINISH_REASON_ABORTED;
  const bool whole = extent != Extent::kPrefix && !aborted;
  if (whole ? got.token_ids != expected.token_ids
            : got.token_ids.size() > expected.token_ids.size() ||
                  !std::equal(got.token_ids.begin(), got.token_ids.end(),
                              expected.token_ids.begin())) {
    return absl::StrCat("other tokens: '", got.text, "' instead of '", expected.text, "'");
  }
  // What was held back for a stop string comes with an abort, though the string might have come.
  if (whole
          ? got.text != expected.text
          : !IsPrefix(got.text, expected.text) && !(aborted && IsPrefix(expected.text, got.text))) {
    return absl::StrCat("'", got.text, "' instead of '", expected.text, "'");
  }
  if (whole && got.reason != expected.reason) {
    return absl::StrCat("finish reason ", got.reason, " instead of ", expected.reason);
  }
  return CompareNumbers("log-probabilities", expected.logprobs, got.logprobs, whole, largest);
}

v1::GenerateRequest Prompt(const std::string& text, int32_t max_new_tokens) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_new_tokens(max_new_tokens);
  return request;
}

v1::GenerateRequest Sampled(const std::string& text, int32_t max_new_tokens, uint64_t seed) {
  v1::GenerateRequest request = Prompt(text, max_new_tokens);
  request.mutable_sampling()->set_temperature(0.9f);
  request.mutable_sampling()->set_seed(seed);
  return request;
}

std::string LongText() {
  std::string text;
  while (text.size() < 600) text += "Once there was a dog. It ran to the park with a red ball. ";
  return text;
}

void AddGreedy(std::vector<v1::GenerateRequest>* jobs) {
  v1::GenerateRequest golden = Prompt("Lily and Tom went to the park", 117);
  golden.mutable_output()->set_echo(true);
  jobs->push_back(golden);
  for (const char* text : {"Once upon a time", "The cat", "", "Tom had a big red ball. He"}) {
    jobs->push_back(Prompt(text, 60));
  }
  jobs->push_back(Prompt(LongText(), 30));  // several chunks, if the step is full
  v1::GenerateRequest ids = Prompt("", 25);
  for (const int32_t id : {1, 403, 407, 261, 378}) ids.mutable_token_ids()->add_ids(id);
  jobs->push_back(ids);
  v1::GenerateRequest endless = Prompt("One day", 300);
  endless.mutable_stopping()->set_ignore_eos(true);
  jobs->push_back(endless);
  jobs->push_back(Prompt("She said", 1));
  for (const int32_t priority : {-1, 2}) {
    v1::GenerateRequest other = Prompt("The sun was", 40);
    other.set_priority(priority);
    jobs->push_back(other);
  }
}

void AddSampled(std::vector<v1::GenerateRequest>* jobs) {
  v1::GenerateRequest three = Sampled("Once upon a time there was a little", 50, 11);
  three.mutable_output()->set_n(3);
  jobs->push_back(three);
  v1::GenerateRequest two = Sampled(LongText(), 20, 12);
  two.mutable_output()->set_n(2);
  two.mutable_sampling()->set_top_k(30);
  jobs->push_back(two);
  v1::GenerateRequest nucleus = Sampled("Lily saw", 70, 13);
  nucleus.mutable_sampling()->set_top_p(0.9f);
  nucleus.mutable_sampling()->set_min_p(0.02f);
  jobs->push_back(nucleus);
  v1::GenerateRequest adjusted = Sampled("The bird", 60, 14);
  adjusted.mutable_sampling()->set_presence_penalty(0.5f);
  adjusted.mutable_sampling()->set_frequency_penalty(0.3f);
  adjusted.mutable_sampling()->set_repetition_penalty(1.2f);
  jobs->push_back(adjusted);
  v1::GenerateRequest biased = Prompt("Ben was", 40);
  (*biased.mutable_sampling()->mutable_logit_bias())[300] = 2.5f;
  biased.mutable_sampling()->add_banned_token_ids(261);
  jobs->push_back(biased);
}

void AddOutputs(std::vector<v1::GenerateRequest>* jobs) {
  v1::GenerateRequest logprobs = Prompt("Mom and Dad", 30);
  logprobs.mutable_output()->set_top_logprobs(5);
  logprobs.mutable_output()->set_prompt_logprobs(true);
  jobs->push_back(logprobs);
  v1::GenerateRequest both = Sampled("It was a sunny day", 25, 15);
  both.mutable_output()->set_n(2);
  both.mutable_output()->set_top_logprobs(20);
  jobs->push_back(both);
  for (const char* stop : {"the", ". ", "girl named L", "to play with"}) {
    v1::GenerateRequest stopped = Prompt("Once upon a time", 100);
    stopped.mutable_stopping()->add_stop_strings(stop);
    stopped.mutable_stopping()->add_stop_strings("never in a story");
    stopped.mutable_stopping()->set_include_stop_string(*stop == 't');
    jobs->push_back(stopped);
  }
}

std::vector<v1::EmbedRequest> Embeds() {
  v1::EmbedRequest one;
  one.add_inputs()->set_text("The little dog was happy");
  one.set_pooling(v1::POOLING_LAST);
  v1::EmbedRequest batch;
  for (const char* text : {"A red ball", "A blue car", "The rain", "Lily likes cake", "no"}) {
    batch.add_inputs()->set_text(text);
  }
  batch.set_pooling(v1::POOLING_MEAN);
  batch.set_dimensions(16);
  v1::EmbedRequest longer;
  longer.add_inputs()->set_text(LongText());
  longer.set_pooling(v1::POOLING_MEAN);
  longer.set_normalize(false);
  return {one, batch, longer};
}

using Change = std::function<void(v1::GenerateRequest&)>;

// Each out of its range, or at odds with another field.
const std::vector<Change>& WrongFields() {
  static const auto* const kChanges = new std::vector<Change>{
      [](auto& r) { r.clear_prompt(); },
      [](auto& r) { r.set_text(std::string(20'000, 'x')); },
      [](auto& r) { r.mutable_token_ids()->add_ids(512); },
      [](auto& r) { r.mutable_token_ids()->add_ids(std::numeric_limits<int32_t>::min()); },
      [](auto& r) { r.mutable_sampling()->set_temperature(std::nanf("")); },
      [](auto& r) { r.mutable_sampling()->set_temperature(-1); },
      [](auto& r) { r.mutable_sampling()->set_top_k(-1); },
      [](auto& r) { r.mutable_sampling()->set_top_p(std::numeric_limits<float>::infinity()); },
      [](auto& r) { r.mutable_sampling()->set_repetition_penalty(0); },
      [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[-1] = 1; },
      [](auto& r) { r.mutable_sampling()->add_allowed_token_ids(512); },
      [](auto& r) { r.mutable_stopping()->set_max_new_tokens(0); },
      [](auto& r) { r.mutable_stopping()->set_max_new_tokens(1 << 30); },
      [](auto& r) { r.mutable_stopping()->set_min_new_tokens(50); },
      [](auto& r) { r.mutable_stopping()->add_stop_strings(""); },
      [](auto& r) { r.mutable_output()->set_n(65); },
      [](auto& r) { r.mutable_output()->set_top_logprobs(21); },
      [](auto& r) { r.set_priority(101); },
      [](auto& r) { r.set_request_id(std::string(5000, 'i')); },
      [](auto& r) { r.set_cache_salt(std::string(257, 's')); },
  };
  return *kChanges;
}

}  // namespace

void Reply::Add(const v1::PromptInfo& info) {
  AddLogprobs(info.prompt_logprobs(), &prompt_logprobs);
}

void Reply::Add(const v1::Choice& choice) {
  const auto index = static_cast<size_t>(choice.index());
  if (samples.size() <= index) samples.resize(index + 1);
  Sample& sample = samples[index];
  sample.text += choice.text();
  sample.token_ids.insert(sample.token_ids.end(), choice.token_ids().begin(),
                          choice.token_ids().end());
  AddLogprobs(choice.logprobs(), &sample.logprobs);
  if (choice.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    sample.reason = choice.finish_reason();
  }
}

void Reply::Add(const v1::EmbedResponse& response) {
  for (const v1::Embedding& embedding : response.embeddings()) {
    embeddings.insert(embeddings.end(), embedding.values().begin(), embedding.values().end());
  }
}

std::string Compare(const Reply& expected, const Reply& reply, Extent extent, float* largest) {
  const bool whole = extent != Extent::kPrefix;
  if (reply.samples.size() > expected.samples.size() ||
      (whole && reply.samples.size() < expected.samples.size())) {
    return absl::StrCat(reply.samples.size(), " choices instead of ", expected.samples.size());
  }
  for (size_t i = 0; i < reply.samples.size(); ++i) {
    std::string problem = CompareSample(expected.samples[i], reply.samples[i], extent, largest);
    if (!problem.empty()) return absl::StrCat("choice ", i, ": ", problem);
  }
  std::string problem = CompareNumbers("log-probabilities of the prompt", expected.prompt_logprobs,
                                       reply.prompt_logprobs, extent == Extent::kWhole, largest);
  if (!problem.empty()) return problem;
  return CompareNumbers("embedded values", expected.embeddings, reply.embeddings, whole, largest);
}

std::vector<Job> MakeJobs() {
  std::vector<v1::GenerateRequest> requests;
  AddGreedy(&requests);
  AddSampled(&requests);
  AddOutputs(&requests);
  std::vector<Job> jobs;
  for (const v1::GenerateRequest& request : requests) jobs.push_back({request, {}});
  for (const v1::EmbedRequest& request : Embeds()) jobs.push_back({request, {}});
  return jobs;
}

v1::GenerateRequest FloodRequest() {
  v1::GenerateRequest request = Prompt("Once", 120);
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_output()->set_n(4);
  request.mutable_output()->set_top_logprobs(20);
  return request;
}

Garbage MakeGarbage(std::mt19937_64& random, int32_t max_message_bytes) {
  const auto below = [&](size_t bound) { return static_cast<size_t>(random() % bound); };
  // A full queue is found before anything is read.
  constexpr int kFull = grpc::StatusCode::RESOURCE_EXHAUSTED;
  constexpr int kInvalid = grpc::StatusCode::INVALID_ARGUMENT;
  const char* const generate = below(2) == 0 ? kGenerate : kGenerateStream;
  v1::GenerateRequest request = Prompt("Once upon a time", 20);
  switch (below(7)) {
    case 0: {  // no message: a field whose length is not there
      std::string bytes(1 + below(300), '\0');
      for (char& byte : bytes) byte = static_cast<char>(random());
      return {below(2) == 0 ? generate : kEmbed, bytes + "\x1A\xFF\xFF\xFF\x7F", {kInvalid, kFull}};
    }
    case 1: {  // cut short, inside its last field
      request.set_cache_salt(std::string(20, 's'));
      const std::string whole = request.SerializeAsString();
      return {generate, whole.substr(0, whole.size() - 1 - below(20)), {kInvalid, kFull}};
    }
    case 2:  // larger than messages may be
      return {generate,
              std::string(static_cast<size_t>(max_message_bytes) + 1 + below(1000), 'a'),
              {kFull}};
    case 3:
      return {below(2) == 0 ? "/ferrite.v1.Inference/Nothing" : "/nothing",
              "abc",
              {grpc::StatusCode::UNIMPLEMENTED}};
    case 4:  // text that is not UTF-8
      return {generate,
              "\x1A\x04"
              "ab\xFFz",
              {kInvalid, kFull}};
    case 5: {
      v1::EmbedRequest embed;
      for (size_t i = below(2); i > 0; --i) embed.add_inputs();
      return {kEmbed, embed.SerializeAsString(), {kInvalid, kFull}};
    }
    default:
      WrongFields()[below(WrongFields().size())](request);
      return {generate, request.SerializeAsString(), {kInvalid, kFull}};
  }
}

}  // namespace ferrite::storm

// What `ferrite generate` was asked for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/console.h"
#include "ferrite/v1/inference.pb.h"

namespace CLI {
class App;
}  // namespace CLI

namespace ferrite {

struct GenerateOptions {
  std::optional<std::string> prompt;
  std::optional<std::string> token_ids;  // "1,2,3", instead of a prompt
  std::optional<std::string> model;
  std::optional<std::string> request_id;
  bool no_special_tokens = false;
  bool truncate_prompt = false;
  std::optional<int32_t> priority;
  bool no_cache_prompt = false;
  std::optional<std::string> cache_salt;

  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> frequency_penalty;
  std::optional<float> presence_penalty;
  std::vector<std::string> logit_biases;         // "ID=BIAS"
  std::optional<std::string> allowed_token_ids;  // "1,2,3"
  std::optional<std::string> banned_token_ids;
  std::optional<uint64_t> seed;

  std::optional<int32_t> max_new_tokens;
  std::optional<int32_t> min_new_tokens;
  std::vector<std::string> stop_strings;
  std::vector<std::string> stop_token_ids;
  bool include_stop_string = false;
  bool ignore_eos = false;

  std::optional<int32_t> n;
  bool logprobs = false;
  std::optional<int32_t> top_logprobs;
  bool prompt_logprobs = false;
  bool echo = false;
  bool keep_special_tokens = false;
  bool no_token_ids = false;

  // How it is asked and shown.
  bool stream = false;  // with json
  bool no_stream = false;
  bool json = false;
  std::optional<std::string> batch;  // a file, or "-"
  int32_t concurrency = 8;           // of a batch
  bool quiet = false;
};

// Adds the subcommand, which parses into `options`.
CLI::App* AddGenerate(CLI::App* app, GenerateOptions* options);

// The request that `options` ask for but for its prompt; knobs that they do not have stay unset.
// InvalidArgument says what is wrong.
absl::StatusOr<v1::GenerateRequest> MakeGenerateRequest(const GenerateOptions& options);

// Sets the prompt of `options`, or what `console` has to read if it is not among them.
// InvalidArgument says what is missing or wrong.
absl::Status FillPrompt(const GenerateOptions& options, const Console& console,
                        v1::GenerateRequest* request);

}  // namespace ferrite

// `ferrite generate`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/connection.h"
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
  std::optional<int32_t> max_new_tokens;
  std::optional<int32_t> min_new_tokens;
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
  std::vector<std::string> stop_strings;
  std::vector<std::string> stop_token_ids;
  bool include_stop_string = false;
  bool ignore_eos = false;
  bool no_special_tokens = false;
  bool no_stream = false;
  bool echo_prompt = false;
  bool quiet = false;
};

// Adds the subcommand, which parses into `options`.
CLI::App* AddGenerate(CLI::App* app, GenerateOptions* options);

// The request that `options` ask for; knobs that they do not have stay unset. Reads the prompt from
// `console` if it is not among them. InvalidArgument says what is missing or wrong.
absl::StatusOr<v1::GenerateRequest> MakeGenerateRequest(const GenerateOptions& options,
                                                        const Console& console);

// Runs the command and returns its exit code. Each piece of text is written as it comes.
int RunGenerate(const GenerateOptions& options, const ConnectionOptions& connection_options,
                const Console& console);

}  // namespace ferrite

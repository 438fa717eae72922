// What `ferrite embed` was asked for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/console.h"
#include "ferrite/v1/inference.pb.h"

namespace CLI {
class App;
}  // namespace CLI

namespace ferrite {

struct EmbedOptions {
  std::vector<std::string> texts;
  std::vector<std::string> token_ids;  // instead; each one input, "1,2,3"
  std::optional<std::string> file;     // instead; one text a line
  std::optional<std::string> model;
  std::optional<std::string> request_id;
  std::optional<std::string> pooling;  // "last" or "mean"
  bool normalize = false;
  bool no_normalize = false;
  std::optional<int32_t> dimensions;
  std::optional<std::string> prompt_name;
  std::optional<std::string> instruction;
  bool truncate = false;
  bool no_special_tokens = false;
  std::optional<int32_t> priority;

  bool json = false;
  std::optional<std::string> output;  // a file, or "-"
  std::optional<std::string> format;  // of output; "float32"
  int32_t batch_size = 32;            // inputs a call
  int32_t concurrency = 4;            // calls in flight
  bool quiet = false;
};

CLI::App* AddEmbed(CLI::App* app, EmbedOptions* options);

// The request that `options` ask for but for its inputs.
v1::EmbedRequest MakeEmbedRequest(const EmbedOptions& options);

// The inputs that `options` have, or that `console` has to read, one text a line. InvalidArgument
// says what is missing or wrong.
absl::StatusOr<std::vector<v1::EmbedInput>> ReadInputs(const EmbedOptions& options,
                                                       const Console& console);

}  // namespace ferrite

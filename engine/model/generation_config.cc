#include "engine/model/generation_config.h"

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/model/json_reader.h"
#include "engine/model/read_file.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

constexpr char kGenerationConfigFile[] = "generation_config.json";

std::optional<float> ToFloat(std::optional<double> value) {
  return value.has_value() ? std::optional<float>(static_cast<float>(*value)) : std::nullopt;
}

absl::StatusOr<GenerationConfig> ParseGeneration(std::string_view text, const std::string& source) {
  ASSIGN_OR_RETURN(const JsonObject file, JsonObject::Parse(text, source));
  GenerationConfig config;
  ASSIGN_OR_RETURN(const bool do_sample, file.BoolOr("do_sample", false));
  ASSIGN_OR_RETURN(const auto temperature, file.OptionalNumber("temperature", {0, 100}));
  config.temperature = do_sample ? static_cast<float>(temperature.value_or(1.0)) : 0.0f;
  ASSIGN_OR_RETURN(config.top_k, file.OptionalInt("top_k", {0, INT32_MAX}));
  ASSIGN_OR_RETURN(const auto top_p,
                   file.OptionalNumber("top_p", {.min = 0, .max = 1, .min_excluded = true}));
  config.top_p = ToFloat(top_p);
  ASSIGN_OR_RETURN(const auto min_p, file.OptionalNumber("min_p", {0, 1}));
  config.min_p = ToFloat(min_p);
  ASSIGN_OR_RETURN(
      const auto repetition_penalty,
      file.OptionalNumber("repetition_penalty", {.min = 0, .max = 100, .min_excluded = true}));
  config.repetition_penalty = ToFloat(repetition_penalty);
  ASSIGN_OR_RETURN(config.eos_token_ids, file.IntOrList("eos_token_id", {0, INT32_MAX}));
  return config;
}

}  // namespace

absl::StatusOr<GenerationConfig> ParseGenerationConfig(std::string_view json) {
  return ParseGeneration(json, kGenerationConfigFile);
}

absl::StatusOr<GenerationConfig> LoadGenerationConfig(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kGenerationConfigFile);
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (absl::IsNotFound(text.status())) {
    return GenerationConfig();
  }
  RETURN_IF_ERROR(text.status());
  return ParseGeneration(*text, path);
}

}  // namespace ferrite

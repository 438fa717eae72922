// A model's own sampling defaults, from generation_config.json.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/ids.h"

namespace ferrite {

// What the file says; unset where it says nothing. do_sample false or absent makes temperature 0;
// with do_sample true an absent temperature is 1.
struct GenerationConfig {
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::vector<TokenId> eos_token_ids;
};

absl::StatusOr<GenerationConfig> ParseGenerationConfig(std::string_view json);

// Reads `directory`/generation_config.json; a missing file is an empty GenerationConfig.
absl::StatusOr<GenerationConfig> LoadGenerationConfig(const std::string& directory);

}  // namespace ferrite

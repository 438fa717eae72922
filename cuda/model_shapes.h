// Shapes of well-known models, for benchmarks without a checkpoint.
#pragma once

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/model_config.h"

namespace ferrite {

// "llama-3.1-8b", "llama-3.2-1b", "qwen3-0.6b", "qwen3-8b", "qwen2.5-7b", as their config.json on
// the Hugging Face hub has them; no token ends a text. InvalidArgument, with the names there are,
// for any other.
absl::StatusOr<ModelConfig> NamedModelShape(std::string_view name);

std::vector<std::string_view> ModelShapeNames();

}  // namespace ferrite

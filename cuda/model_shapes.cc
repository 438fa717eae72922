#include "cuda/model_shapes.h"

#include <array>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ferrite {
namespace {

struct NamedShape {
  std::string_view name;
  std::string_view family;
  int32_t vocab;
  int32_t hidden;
  int32_t intermediate;
  int32_t layers;
  int32_t heads;
  int32_t kv_heads;
  int32_t head_dim;
  int32_t positions;
  bool tied;
};

constexpr std::array<NamedShape, 5> kShapes = {{
    {"llama-3.1-8b", "llama", 128256, 4096, 14336, 32, 32, 8, 128, 131072, false},
    {"llama-3.2-1b", "llama", 128256, 2048, 8192, 16, 32, 8, 64, 131072, true},
    {"qwen3-0.6b", "qwen3", 151936, 1024, 3072, 28, 16, 8, 128, 40960, true},
    {"qwen3-8b", "qwen3", 151936, 4096, 12288, 36, 32, 8, 128, 40960, false},
    {"qwen2.5-7b", "qwen2", 152064, 3584, 18944, 28, 28, 4, 128, 32768, false},
}};

ModelConfig ConfigOf(const NamedShape& shape) {
  ModelConfig config;
  config.model_type = shape.family;
  config.vocab_size = shape.vocab;
  config.hidden_size = shape.hidden;
  config.intermediate_size = shape.intermediate;
  config.num_layers = shape.layers;
  config.num_heads = shape.heads;
  config.num_kv_heads = shape.kv_heads;
  config.head_dim = shape.head_dim;
  config.max_position_embeddings = shape.positions;
  config.tie_word_embeddings = shape.tied;
  config.windows.assign(shape.layers, 0);
  if (shape.family == "llama") {
    config.architecture = "LlamaForCausalLM";
    config.rms_norm_eps = 1e-5f;
    config.rope = {.type = RopeConfig::Type::kLlama3,
                   .theta = 500000.0,
                   .factor = shape.tied ? 32.0 : 8.0,
                   .original_max_position_embeddings = 8192};
  } else {
    config.architecture = shape.family == "qwen3" ? "Qwen3ForCausalLM" : "Qwen2ForCausalLM";
    config.rms_norm_eps = 1e-6f;
    config.rope.theta = 1000000.0;
    config.qk_norm = shape.family == "qwen3";
    config.qkv_bias = shape.family == "qwen2";
  }
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> NamedModelShape(std::string_view name) {
  std::string names;
  for (const NamedShape& shape : kShapes) {
    if (shape.name == name) {
      return ConfigOf(shape);
    }
    absl::StrAppend(&names, names.empty() ? "" : ", ", std::string(shape.name));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("there is no model shape '", std::string(name), "'; there are ", names));
}

std::vector<std::string_view> ModelShapeNames() {
  std::vector<std::string_view> names;
  for (const NamedShape& shape : kShapes) {
    names.push_back(shape.name);
  }
  return names;
}

}  // namespace ferrite

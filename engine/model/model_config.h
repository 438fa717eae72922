// The shape of a decoder-only transformer, read from a Hugging Face config.json. Families differ by
// these values alone: there is no subclass per model.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/ids.h"

namespace ferrite {

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM"
  std::string model_type;    // "llama"
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_layers = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t max_position_embeddings = 0;
  float rms_norm_eps = 0;
  double rope_theta = 10000.0;
  bool tie_word_embeddings = false;
  std::optional<TokenId> bos_token_id;
  std::vector<TokenId> eos_token_ids;

  int32_t q_size() const { return num_heads * head_dim; }
  int32_t kv_size() const { return num_kv_heads * head_dim; }
};

// Parses config.json. InvalidArgument names the key, its value and the bound; an architecture or
// option that changes the numbers and is not supported is Unimplemented, named.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json);

// Reads `directory`/config.json. NotFound if there is none.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory);

}  // namespace ferrite

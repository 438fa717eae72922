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
#include "engine/model/gptq_config.h"

namespace ferrite {

// How rotary embedding stretches positions beyond those a model was first trained on. What each
// type means: transformers' modeling_rope_utils.py.
struct RopeConfig {
  enum class Type { kDefault, kLinear, kDynamic, kLlama3, kYarn };

  Type type = Type::kDefault;
  double theta = 10000.0;
  double factor = 1.0;                          // all but kDefault
  double original_max_position_embeddings = 0;  // kLlama3 and kYarn
  double low_freq_factor = 1.0;                 // kLlama3
  double high_freq_factor = 4.0;                // kLlama3
  double beta_fast = 32.0;                      // kYarn, and so are the rest
  double beta_slow = 1.0;
  bool truncate = true;
  double attention_factor = 1.0;  // of cos and sin, worked out from mscale where the file has that

  bool operator==(const RopeConfig&) const = default;
};

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
  RopeConfig rope;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;  // RMS norm of each q and k head before rotation, as Qwen3 has it
  // [num_layers] How many keys a query sees, itself and those just before it; 0: all of them.
  std::vector<int32_t> windows;
  bool tie_word_embeddings = false;
  std::optional<GptqConfig> gptq;  // if linears may be quantised
  std::optional<TokenId> bos_token_id;
  std::vector<TokenId> eos_token_ids;

  int32_t q_size() const { return num_heads * head_dim; }
  int32_t kv_size() const { return num_kv_heads * head_dim; }
};

// Parses config.json. A key that is absent has the value that transformers gives it in that family.
// InvalidArgument names the key, its value and the bound; an architecture, or an option that might
// change the numbers and is not supported (config_keys.h says which may), is Unimplemented, named.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json);

// Reads `directory`/config.json. NotFound if there is none. If it does not say how the model is
// quantised, `directory`/quantize_config.json may.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory);

}  // namespace ferrite

#include "engine/model/model_config.h"

#include <algorithm>
#include <array>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/model/config_keys.h"
#include "engine/model/json_reader.h"
#include "engine/model/read_file.h"
#include "engine/model/rope_config.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

constexpr char kFileName[] = "config.json";

// Far above any real model, and low enough that sizes computed from these fit their types.
constexpr IntRange kVocabRange = {1, 10'000'000};
constexpr IntRange kHiddenRange = {1, 1'000'000};
constexpr IntRange kIntermediateRange = {1, 10'000'000};
constexpr IntRange kLayerRange = {1, 1'000};
constexpr IntRange kHeadRange = {1, 4'096};
constexpr IntRange kHeadDimRange = {2, 1'024};
constexpr IntRange kPositionRange = {1, 1 << 24};
constexpr IntRange kWindowRange = {1, INT32_MAX};
constexpr NumberRange kEpsRange = {.min = 0, .max = 1, .min_excluded = true};
constexpr double kDefaultEps = 1e-6;
constexpr int32_t kDefaultWindow = 4096;
constexpr int32_t kDefaultMaxWindowLayers = 28;

enum class Biases { kNone, kQkv, kAsConfigured };
enum class Windows { kNone, kEveryLayer, kByLayer };

// All that tells families apart: what transformers' configuration_*.py and modeling_*.py of each
// say.
struct Family {
  const char* architecture;
  const char* headless;  // the architecture without lm_head, and without a prefix to its tensors
  const char* model_type;
  int32_t num_kv_heads;             // where the key is absent; 0: num_attention_heads
  int32_t head_dim;                 // where the key is absent; 0: hidden_size / num_attention_heads
  int32_t max_position_embeddings;  // where the key is absent
  bool has_default_tokens;          // bos 1 and eos 2, where the keys are absent
  Biases attention_biases;
  bool mlp_bias_configured;
  bool qk_norm;
  Windows windows;
};

constexpr std::array kFamilies = {
    Family{.architecture = "LlamaForCausalLM",
           .headless = "LlamaModel",
           .model_type = "llama",
           .num_kv_heads = 0,
           .head_dim = 0,
           .max_position_embeddings = 2048,
           .has_default_tokens = true,
           .attention_biases = Biases::kAsConfigured,
           .mlp_bias_configured = true,
           .qk_norm = false,
           .windows = Windows::kNone},
    Family{.architecture = "MistralForCausalLM",
           .headless = "MistralModel",
           .model_type = "mistral",
           .num_kv_heads = 8,
           .head_dim = 0,
           .max_position_embeddings = 131072,
           .has_default_tokens = true,
           .attention_biases = Biases::kNone,
           .mlp_bias_configured = false,
           .qk_norm = false,
           .windows = Windows::kEveryLayer},
    Family{.architecture = "Qwen2ForCausalLM",
           .headless = "Qwen2Model",
           .model_type = "qwen2",
           .num_kv_heads = 32,
           .head_dim = 0,
           .max_position_embeddings = 32768,
           .has_default_tokens = false,
           .attention_biases = Biases::kQkv,
           .mlp_bias_configured = false,
           .qk_norm = false,
           .windows = Windows::kByLayer},
    Family{.architecture = "Qwen3ForCausalLM",
           .headless = "Qwen3Model",
           .model_type = "qwen3",
           .num_kv_heads = 32,
           .head_dim = 128,
           .max_position_embeddings = 32768,
           .has_default_tokens = false,
           .attention_biases = Biases::kAsConfigured,
           .mlp_bias_configured = false,
           .qk_norm = true,
           .windows = Windows::kByLayer},
};

// What the functions below and rope_config.h read, whatever the family.
constexpr auto kUnderstood = std::to_array<std::string_view>({"architectures",
                                                              "bos_token_id",
                                                              "eos_token_id",
                                                              "head_dim",
                                                              "hidden_act",
                                                              "hidden_size",
                                                              "intermediate_size",
                                                              "layer_types",
                                                              "max_position_embeddings",
                                                              "max_window_layers",
                                                              "model_type",
                                                              "num_attention_heads",
                                                              "num_hidden_layers",
                                                              "num_key_value_heads",
                                                              "original_max_position_embeddings",
                                                              "partial_rotary_factor",
                                                              "pretraining_tp",
                                                              "quantization_config",
                                                              "rms_norm_eps",
                                                              "rope_parameters",
                                                              "rope_scaling",
                                                              "rope_theta",
                                                              "sliding_window",
                                                              "tie_word_embeddings",
                                                              "use_sliding_window",
                                                              "vocab_size"});

absl::StatusOr<Family> FindFamily(const JsonObject& file) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, file.Strings("architectures"));
  for (const Family& family : kFamilies) {
    for (const std::string& name : names) {
      if (name == family.architecture || name == family.headless) {
        return family;
      }
    }
  }
  std::string supported;
  for (const Family& family : kFamilies) {
    absl::StrAppend(&supported, supported.empty() ? "" : ", ", family.architecture);
  }
  return file.Unimplemented("architectures",
                            absl::StrCat("must name a supported one (", supported, ")"));
}

// The integer at `key`; `if_absent` or `if_null` where there is none.
absl::StatusOr<int32_t> IntOr(const JsonObject& file, const char* key, IntRange range,
                              int32_t if_absent, int32_t if_null) {
  ASSIGN_OR_RETURN(const auto value, file.OptionalInt(key, range));
  return value.value_or(file.IsNull(key) ? if_null : if_absent);
}

absl::Status ReadHeads(const JsonObject& file, const Family& family, ModelConfig* config) {
  ASSIGN_OR_RETURN(config->num_heads, file.Int("num_attention_heads", kHeadRange));
  ASSIGN_OR_RETURN(
      config->num_kv_heads,
      IntOr(file, "num_key_value_heads", kHeadRange,
            family.num_kv_heads == 0 ? config->num_heads : family.num_kv_heads, config->num_heads));
  if (config->num_heads % config->num_kv_heads != 0) {
    return file.Invalid("num_key_value_heads",
                        absl::StrCat("must divide num_attention_heads (", config->num_heads,
                                     ") and is ", config->num_kv_heads));
  }

  ASSIGN_OR_RETURN(config->head_dim, IntOr(file, "head_dim", kHeadDimRange, family.head_dim, 0));
  const char* key = "head_dim";
  if (config->head_dim == 0) {
    key = "hidden_size";
    if (config->hidden_size % config->num_heads != 0) {
      return file.Invalid(key, absl::StrCat("must be a multiple of num_attention_heads (",
                                            config->num_heads, ") where head_dim is absent"));
    }
    config->head_dim = config->hidden_size / config->num_heads;
  }
  // Even, because rotary embedding turns pairs. A derived value has not had its range checked.
  if (config->head_dim % 2 != 0 || config->head_dim < kHeadDimRange.min ||
      config->head_dim > kHeadDimRange.max) {
    return file.Invalid(
        key, absl::StrCat("must make heads of an even size in [", kHeadDimRange.min, ", ",
                          kHeadDimRange.max, "], which is ", config->head_dim));
  }
  return absl::OkStatus();
}

absl::Status ReadShape(const JsonObject& file, const Family& family, ModelConfig* config) {
  ASSIGN_OR_RETURN(config->vocab_size, file.Int("vocab_size", kVocabRange));
  ASSIGN_OR_RETURN(config->hidden_size, file.Int("hidden_size", kHiddenRange));
  ASSIGN_OR_RETURN(config->intermediate_size, file.Int("intermediate_size", kIntermediateRange));
  ASSIGN_OR_RETURN(config->num_layers, file.Int("num_hidden_layers", kLayerRange));
  ASSIGN_OR_RETURN(const auto positions,
                   file.OptionalInt("max_position_embeddings", kPositionRange));
  config->max_position_embeddings = positions.value_or(family.max_position_embeddings);
  ASSIGN_OR_RETURN(const auto eps, file.OptionalNumber("rms_norm_eps", kEpsRange));
  config->rms_norm_eps = static_cast<float>(eps.value_or(kDefaultEps));
  ASSIGN_OR_RETURN(config->tie_word_embeddings, file.BoolOr("tie_word_embeddings", false));
  return ReadHeads(file, family, config);
}

absl::Status ReadTokens(const JsonObject& file, const Family& family, ModelConfig* config) {
  const IntRange range = {0, config->vocab_size - 1};
  ASSIGN_OR_RETURN(config->bos_token_id, file.OptionalInt("bos_token_id", range));
  ASSIGN_OR_RETURN(config->eos_token_ids, file.IntOrList("eos_token_id", range));
  if (family.has_default_tokens && config->vocab_size > 2) {
    if (!file.Has("bos_token_id") && !file.IsNull("bos_token_id")) {
      config->bos_token_id = 1;
    }
    if (!file.Has("eos_token_id") && !file.IsNull("eos_token_id")) {
      config->eos_token_ids = {2};
    }
  }
  return absl::OkStatus();
}

absl::Status ReadBiases(const JsonObject& file, const Family& family, ModelConfig* config) {
  config->qkv_bias = family.attention_biases == Biases::kQkv;
  if (family.attention_biases == Biases::kAsConfigured) {
    ASSIGN_OR_RETURN(config->qkv_bias, file.BoolOr("attention_bias", false));
    config->o_bias = config->qkv_bias;
  }
  if (family.mlp_bias_configured) {
    ASSIGN_OR_RETURN(config->mlp_bias, file.BoolOr("mlp_bias", false));
  }
  return absl::OkStatus();
}

// The window of the layers that have one; 0 if the family or the file has none.
absl::StatusOr<int32_t> ReadWindow(const JsonObject& file, const Family& family) {
  ASSIGN_OR_RETURN(const bool use, file.BoolOr("use_sliding_window", true));
  ASSIGN_OR_RETURN(const auto given, file.OptionalInt("sliding_window", {0, INT32_MAX}));
  switch (family.windows) {
    case Windows::kNone:
      if (given.has_value() && use) {
        return file.Unimplemented("sliding_window", "is not supported for this architecture");
      }
      return 0;
    case Windows::kEveryLayer:
      if (!use && !file.IsNull("sliding_window")) {
        return file.Invalid("use_sliding_window",
                            "must not be false unless sliding_window is null");
      }
      return IntOr(file, "sliding_window", kWindowRange, kDefaultWindow, 0);
    case Windows::kByLayer:
      if (!use || !file.Has("use_sliding_window")) {
        return 0;
      }
      return IntOr(file, "sliding_window", kWindowRange, kDefaultWindow, 0);
  }
  return 0;
}

// What layer_types says, which wins over max_window_layers where layers may differ.
absl::Status ReadLayerTypes(const JsonObject& file, const Family& family, int32_t window,
                            ModelConfig* config) {
  ASSIGN_OR_RETURN(const std::vector<std::string> types, file.Strings("layer_types"));
  if (types.size() != config->windows.size()) {
    return file.Invalid("layer_types", absl::StrCat("must name num_hidden_layers (",
                                                    config->num_layers, ") types"));
  }
  for (size_t i = 0; i < types.size(); ++i) {
    const bool slides = types[i] == "sliding_attention";
    if (!slides && types[i] != "full_attention") {
      return file.Unimplemented("layer_types",
                                "must only name full_attention and sliding_attention");
    }
    if (slides && window == 0) {
      return file.Invalid("layer_types",
                          "must not name sliding_attention where no sliding_window is in use");
    }
    if (family.windows != Windows::kByLayer && slides != (window != 0)) {
      return file.Unimplemented("layer_types",
                                "must be the same for all layers, all sliding if "
                                "sliding_window is set");
    }
    config->windows[i] = slides ? window : 0;
  }
  return absl::OkStatus();
}

absl::Status ReadWindows(const JsonObject& file, const Family& family, ModelConfig* config) {
  ASSIGN_OR_RETURN(const int32_t window, ReadWindow(file, family));
  ASSIGN_OR_RETURN(const auto full_layers, file.OptionalInt("max_window_layers", {0, INT32_MAX}));
  config->windows.assign(static_cast<size_t>(config->num_layers), window);
  if (file.Has("layer_types")) {
    return ReadLayerTypes(file, family, window, config);
  }
  if (family.windows == Windows::kByLayer) {
    const int32_t full =
        std::min(full_layers.value_or(kDefaultMaxWindowLayers), config->num_layers);
    std::fill_n(config->windows.begin(), full, 0);
  }
  return absl::OkStatus();
}

// Options that change the numbers, and have one value that does not.
absl::Status CheckOptions(const JsonObject& file) {
  ASSIGN_OR_RETURN(const std::string activation, file.StringOr("hidden_act", "silu"));
  if (activation != "silu" && activation != "swish") {  // two names of one function
    return file.Unimplemented("hidden_act", "is not supported unless it is \"silu\"");
  }
  for (const char* key : {"pretraining_tp", "partial_rotary_factor"}) {
    ASSIGN_OR_RETURN(const auto factor, file.OptionalNumber(key, {0, 1e6}));
    if (factor.value_or(1.0) != 1.0) {
      return file.Unimplemented(key, "is not supported unless it is 1");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckKeys(const JsonObject& file, const Family& family) {
  std::vector<std::string_view> understood(kUnderstood.begin(), kUnderstood.end());
  if (family.attention_biases == Biases::kAsConfigured) {
    understood.push_back("attention_bias");
  }
  if (family.mlp_bias_configured) {
    understood.push_back("mlp_bias");
  }
  return RefuseUnknownKeys(file, understood);
}

absl::StatusOr<ModelConfig> Parse(std::string_view text, const std::string& source) {
  ASSIGN_OR_RETURN(const JsonObject file, JsonObject::Parse(text, source));
  ASSIGN_OR_RETURN(const Family family, FindFamily(file));
  ModelConfig config;
  config.architecture = family.architecture;
  ASSIGN_OR_RETURN(config.model_type, file.StringOr("model_type", family.model_type));
  if (config.model_type != family.model_type) {
    return file.Invalid(
        "model_type", absl::StrCat("must be \"", family.model_type, "\", as architectures has it"));
  }
  RETURN_IF_ERROR(CheckKeys(file, family));
  RETURN_IF_ERROR(CheckOptions(file));
  RETURN_IF_ERROR(ReadShape(file, family, &config));
  RETURN_IF_ERROR(ReadTokens(file, family, &config));
  RETURN_IF_ERROR(ReadBiases(file, family, &config));
  config.qk_norm = family.qk_norm;
  RETURN_IF_ERROR(ReadWindows(file, family, &config));
  ASSIGN_OR_RETURN(config.rope, ReadRopeConfig(file, config.max_position_embeddings));
  ASSIGN_OR_RETURN(const auto quantization, file.OptionalObject("quantization_config"));
  if (quantization.has_value()) {
    ASSIGN_OR_RETURN(config.gptq, ReadGptqConfig(*quantization));
  }
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json) {
  return Parse(json, kFileName);
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kFileName);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  ASSIGN_OR_RETURN(ModelConfig config, Parse(text, path));
  // What AutoGPTQ writes.
  const std::string gptq_path = absl::StrCat(directory, "/quantize_config.json");
  const absl::StatusOr<std::string> gptq_text = ReadFile(gptq_path);
  if (!config.gptq.has_value() && !absl::IsNotFound(gptq_text.status())) {
    RETURN_IF_ERROR(gptq_text.status());
    ASSIGN_OR_RETURN(const JsonObject quantization, JsonObject::Parse(*gptq_text, gptq_path));
    ASSIGN_OR_RETURN(config.gptq, ReadGptqConfig(quantization));
  }
  return config;
}

}  // namespace ferrite

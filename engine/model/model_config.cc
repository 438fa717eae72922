#include "engine/model/model_config.h"

#include <array>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/model/json_reader.h"
#include "engine/model/read_file.h"
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
constexpr NumberRange kEpsRange = {.min = 0, .max = 1, .min_excluded = true};
constexpr NumberRange kThetaRange = {.min = 0, .max = 1e18, .min_excluded = true};

// What a family is called. Whatever else tells families apart belongs in this table too.
struct Family {
  const char* architecture;
  const char* model_type;
};

constexpr std::array kFamilies = {Family{"LlamaForCausalLM", "llama"}};

absl::StatusOr<Family> FindFamily(const JsonObject& file) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, file.Strings("architectures"));
  for (const Family& family : kFamilies) {
    for (const std::string& name : names) {
      if (name == family.architecture) {
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

absl::Status ReadShape(const JsonObject& file, ModelConfig* config) {
  ASSIGN_OR_RETURN(config->vocab_size, file.Int("vocab_size", kVocabRange));
  ASSIGN_OR_RETURN(config->hidden_size, file.Int("hidden_size", kHiddenRange));
  ASSIGN_OR_RETURN(config->intermediate_size, file.Int("intermediate_size", kIntermediateRange));
  ASSIGN_OR_RETURN(config->num_layers, file.Int("num_hidden_layers", kLayerRange));
  ASSIGN_OR_RETURN(config->num_heads, file.Int("num_attention_heads", kHeadRange));
  ASSIGN_OR_RETURN(config->max_position_embeddings,
                   file.Int("max_position_embeddings", kPositionRange));

  ASSIGN_OR_RETURN(const auto num_kv_heads, file.OptionalInt("num_key_value_heads", kHeadRange));
  config->num_kv_heads = num_kv_heads.value_or(config->num_heads);
  if (config->num_heads % config->num_kv_heads != 0) {
    return file.Invalid("num_key_value_heads",
                        absl::StrCat("must divide num_attention_heads (", config->num_heads, ")"));
  }

  ASSIGN_OR_RETURN(const auto head_dim, file.OptionalInt("head_dim", kHeadDimRange));
  if (!head_dim.has_value() && config->hidden_size % config->num_heads != 0) {
    return file.Invalid("hidden_size",
                        absl::StrCat("must be a multiple of num_attention_heads (",
                                     config->num_heads, ") where head_dim is absent"));
  }
  config->head_dim = head_dim.value_or(config->hidden_size / config->num_heads);
  // Even, because rotary embedding turns pairs. A derived value has not had its range checked.
  if (config->head_dim % 2 != 0 || config->head_dim < kHeadDimRange.min ||
      config->head_dim > kHeadDimRange.max) {
    return file.Invalid(head_dim.has_value() ? "head_dim" : "hidden_size",
                        absl::StrCat("must make heads of an even size in [", kHeadDimRange.min,
                                     ", ", kHeadDimRange.max, "], which is ", config->head_dim));
  }
  return absl::OkStatus();
}

absl::Status ReadTokens(const JsonObject& file, ModelConfig* config) {
  const IntRange range = {0, config->vocab_size - 1};
  ASSIGN_OR_RETURN(config->bos_token_id, file.OptionalInt("bos_token_id", range));
  ASSIGN_OR_RETURN(config->eos_token_ids, file.IntOrList("eos_token_id", range));
  return absl::OkStatus();
}

absl::Status CheckRopeType(const JsonObject& rope, bool required) {
  const char* key = rope.Has("rope_type") ? "rope_type" : "type";
  ASSIGN_OR_RETURN(const std::string type, rope.StringOr(key, required ? "" : "default"));
  if (type.empty()) {
    return rope.Invalid("rope_type", "must name the kind of scaling");
  }
  if (type != "default") {
    return rope.Unimplemented(key, "is not supported unless it is \"default\"");
  }
  return absl::OkStatus();
}

// Older files have rope_theta and rope_scaling, newer ones both in rope_parameters.
absl::Status ReadRope(const JsonObject& file, ModelConfig* config) {
  ASSIGN_OR_RETURN(const auto theta, file.OptionalNumber("rope_theta", kThetaRange));
  ASSIGN_OR_RETURN(const auto scaling, file.OptionalObject("rope_scaling"));
  if (scaling.has_value()) {
    RETURN_IF_ERROR(CheckRopeType(*scaling, /*required=*/true));
  }
  config->rope.theta = theta.value_or(config->rope.theta);
  ASSIGN_OR_RETURN(const auto parameters, file.OptionalObject("rope_parameters"));
  if (!parameters.has_value()) {
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(CheckRopeType(*parameters, /*required=*/false));
  ASSIGN_OR_RETURN(const auto newer, parameters->OptionalNumber("rope_theta", kThetaRange));
  if (newer.has_value() && theta.has_value() && *newer != *theta) {
    return parameters->Invalid("rope_theta", absl::StrCat("must equal rope_theta (", *theta, ")"));
  }
  config->rope.theta = newer.value_or(config->rope.theta);
  return absl::OkStatus();
}

// Options that change the numbers: better refused than ignored.
absl::Status CheckOptions(const JsonObject& file) {
  ASSIGN_OR_RETURN(const std::string activation, file.StringOr("hidden_act", "silu"));
  if (activation != "silu") {
    return file.Unimplemented("hidden_act", "is not supported unless it is \"silu\"");
  }
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    ASSIGN_OR_RETURN(const bool bias, file.BoolOr(key, false));
    if (bias) {
      return file.Unimplemented(key, "is not supported unless it is false");
    }
  }
  ASSIGN_OR_RETURN(const auto window, file.OptionalInt("sliding_window", {0, INT32_MAX}));
  ASSIGN_OR_RETURN(const bool use_window, file.BoolOr("use_sliding_window", window.has_value()));
  if (window.has_value() && use_window) {
    return file.Unimplemented("sliding_window", "is not supported unless it is null");
  }
  for (const char* key : {"pretraining_tp", "partial_rotary_factor"}) {
    ASSIGN_OR_RETURN(const auto factor, file.OptionalNumber(key, {0, 1e6}));
    if (factor.value_or(1.0) != 1.0) {
      return file.Unimplemented(key, "is not supported unless it is 1");
    }
  }
  ASSIGN_OR_RETURN(const auto quantization, file.OptionalObject("quantization_config"));
  if (quantization.has_value()) {
    return quantization->Unimplemented("quant_method", "is not supported");
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> Parse(std::string_view text, const std::string& source) {
  ASSIGN_OR_RETURN(const JsonObject file, JsonObject::Parse(text, source));
  ASSIGN_OR_RETURN(const Family family, FindFamily(file));
  ModelConfig config;
  config.architecture = family.architecture;
  ASSIGN_OR_RETURN(config.model_type, file.StringOr("model_type", family.model_type));
  RETURN_IF_ERROR(ReadShape(file, &config));
  config.windows.assign(config.num_layers, 0);
  ASSIGN_OR_RETURN(const double eps, file.Number("rms_norm_eps", kEpsRange));
  config.rms_norm_eps = static_cast<float>(eps);
  ASSIGN_OR_RETURN(config.tie_word_embeddings, file.BoolOr("tie_word_embeddings", false));
  RETURN_IF_ERROR(ReadTokens(file, &config));
  RETURN_IF_ERROR(ReadRope(file, &config));
  RETURN_IF_ERROR(CheckOptions(file));
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json) {
  return Parse(json, kFileName);
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kFileName);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return Parse(text, path);
}

}  // namespace ferrite

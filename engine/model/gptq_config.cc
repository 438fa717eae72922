#include "engine/model/gptq_config.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// What is read below, and what says only how the weights were come by or should be multiplied.
// Sorted.
constexpr auto kKnownKeys = std::to_array<std::string_view>({
    "backend",
    "batch_size",
    "bits",
    "block_name_to_quantize",
    "cache_block_outputs",
    "checkpoint_format",
    "damp_percent",
    "dataset",
    "desc_act",
    "disable_exllama",
    "dynamic",
    "exllama_config",
    "format",
    "group_size",
    "is_marlin_format",
    "lm_head",
    "max_input_length",
    "meta",
    "model_file_base_name",
    "model_name_or_path",
    "model_seqlen",
    "module_name_preceding_first_block",
    "modules_in_block_to_quantize",
    "pack_dtype",
    "pad_token_id",
    "quant_method",
    "quantizer",
    "static_groups",
    "sym",
    "tokenizer",
    "true_sequential",
    "use_cuda_fp16",
    "use_exllama",
});
static_assert(std::is_sorted(kKnownKeys.begin(), kKnownKeys.end()));

absl::Status CheckKeys(const JsonObject& object) {
  const std::vector<std::string> keys = object.KeysInEffect();
  for (const std::string& key : keys) {
    if (!std::binary_search(kKnownKeys.begin(), kKnownKeys.end(), key)) {
      return object.Unimplemented(key.c_str(), "is not supported for GPTQ");
    }
  }
  for (const char* key : {"dynamic", "lm_head", "is_marlin_format"}) {
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) {
      return object.Unimplemented(key, "is not supported unless it is absent, false or empty");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GptqConfig> ReadGptqConfig(const JsonObject& object) {
  ASSIGN_OR_RETURN(const std::string method, object.StringOr("quant_method", "gptq"));
  if (method != "gptq") {
    return object.Unimplemented("quant_method", "is not supported unless it is \"gptq\"");
  }
  RETURN_IF_ERROR(CheckKeys(object));
  ASSIGN_OR_RETURN(const int32_t bits, object.Int("bits", {.min = 1, .max = 32}));
  if (bits != 4) {
    return object.Unimplemented("bits", "is not supported unless it is 4");
  }
  ASSIGN_OR_RETURN(const std::string packing, object.StringOr("pack_dtype", "int32"));
  if (packing != "int32") {
    return object.Unimplemented("pack_dtype", "is not supported unless it is \"int32\"");
  }
  GptqConfig config;
  ASSIGN_OR_RETURN(config.group_size, object.Int("group_size", {.min = -1}));
  constexpr std::array kGroupSizes = {-1, 32, 64, 128};
  if (std::find(kGroupSizes.begin(), kGroupSizes.end(), config.group_size) == kGroupSizes.end()) {
    return object.Unimplemented("group_size", "is not supported unless it is 32, 64, 128 or -1");
  }
  ASSIGN_OR_RETURN(config.act_order, object.BoolOr("desc_act", false));
  ASSIGN_OR_RETURN(config.symmetric, object.BoolOr("sym", true));
  // GPTQModel wrote "format" before it wrote "checkpoint_format".
  ASSIGN_OR_RETURN(const std::string older, object.StringOr("format", "gptq"));
  ASSIGN_OR_RETURN(const std::string format, object.StringOr("checkpoint_format", older));
  if (format != "gptq" && format != "gptq_v2") {
    return object.Unimplemented(object.Has("checkpoint_format") ? "checkpoint_format" : "format",
                                "is not supported unless it is \"gptq\" or \"gptq_v2\"");
  }
  config.zeros_less_one = format == "gptq";
  return config;
}

}  // namespace ferrite

#include "engine/model/sentence_transformers.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/model/json_reader.h"
#include "engine/model/read_file.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

constexpr std::string_view kModePrefix = "pooling_mode_";

absl::StatusOr<std::optional<std::string>> ReadIfThere(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path);
  if (absl::IsNotFound(text.status())) {
    return std::nullopt;
  }
  RETURN_IF_ERROR(text.status());
  return *std::move(text);
}

// Null if there is no such file.
absl::StatusOr<std::optional<JsonObject>> ParseIfThere(const std::string& path) {
  ASSIGN_OR_RETURN(const std::optional<std::string> text, ReadIfThere(path));
  if (!text.has_value()) {
    return std::nullopt;
  }
  return JsonObject::Parse(*text, path);
}

// The ways of pooling that the file asks for, without "pooling_mode_": all of them together, if
// there are several. Newer files have one key, "pooling_mode", with their names.
absl::StatusOr<std::vector<std::string>> ReadModes(const JsonObject& file) {
  constexpr char kNewKey[] = "pooling_mode";
  if (file.Has(kNewKey)) {
    const absl::StatusOr<std::string> one = file.StringOr(kNewKey, "");
    return one.ok() ? std::vector<std::string>{*one} : file.Strings(kNewKey);
  }
  std::vector<std::string> modes;
  for (const std::string& key : file.KeysInEffect()) {
    if (key.starts_with(kModePrefix)) {
      ASSIGN_OR_RETURN(const bool on, file.BoolOr(key.c_str(), false));
      if (on) {
        modes.push_back(key.substr(kModePrefix.size()));
      }
    }
  }
  return modes;
}

absl::Status ReadPooling(const std::string& path, SentenceTransformers* model) {
  ASSIGN_OR_RETURN(const std::optional<JsonObject> file, ParseIfThere(path));
  if (!file.has_value()) {
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> modes, ReadModes(*file));
  ASSIGN_OR_RETURN(const bool include_prompt, file->BoolOr("include_prompt", true));
  if (modes.empty()) {
    return file->Invalid("pooling_mode_lasttoken", "must be true, or another way of pooling");
  }
  if (modes == std::vector<std::string>{"lasttoken"}) {
    model->pooling = Pooling::kLast;
  } else if (modes == std::vector<std::string>{"mean_tokens"} ||
             modes == std::vector<std::string>{"mean"}) {
    model->pooling = Pooling::kMean;
  } else {
    model->pooling = Pooling::kNone;
    model->pooling_problem =
        absl::StrCat(path, " asks for ", std::string(kModePrefix), absl::StrJoin(modes, " and "),
                     "; lasttoken and mean_tokens are served");
  }
  if (!include_prompt && model->pooling == Pooling::kMean) {
    model->pooling = Pooling::kNone;
    model->pooling_problem =
        absl::StrCat(path, ": 'include_prompt' is false, a mean without the prompt's tokens");
  }
  return absl::OkStatus();
}

// The modules that work on what comes before them, in their order.
absl::Status ReadModules(const std::string& directory, std::string_view text,
                         SentenceTransformers* model) {
  const std::string path = absl::StrCat(directory, "/modules.json");
  ASSIGN_OR_RETURN(const nlohmann::json modules, ParseJson(text, path));
  if (!modules.is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": must be a list of modules, got ", Describe(modules)));
  }
  model->normalize = false;
  for (size_t i = 0; i < modules.size(); ++i) {
    ASSIGN_OR_RETURN(const JsonObject module,
                     JsonObject::Parse(modules[i].dump(), absl::StrCat(path, ": module ", i)));
    if (!module.Has("type")) {
      return module.Invalid("type", "must be a string");
    }
    ASSIGN_OR_RETURN(const std::string type, module.StringOr("type", ""));
    ASSIGN_OR_RETURN(const std::string folder, module.StringOr("path", ""));
    const std::string name = type.substr(type.rfind('.') + 1);
    if (name == "Pooling") {
      RETURN_IF_ERROR(ReadPooling(absl::StrCat(directory, "/", folder, "/config.json"), model));
    } else if (name == "Normalize") {
      model->normalize = true;
    } else if (name != "Transformer" && model->problem.empty()) {
      model->problem = absl::StrCat(path, " has a module of type ", type,
                                    "; Transformer, Pooling and Normalize are served");
    }
  }
  return absl::OkStatus();
}

absl::Status ReadTextSettings(const std::string& path, SentenceTransformers* model) {
  ASSIGN_OR_RETURN(const std::optional<JsonObject> file, ParseIfThere(path));
  if (!file.has_value()) {
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(model->max_tokens, file->OptionalInt("max_seq_length", {1, INT32_MAX}));
  ASSIGN_OR_RETURN(const bool do_lower_case, file->BoolOr("do_lower_case", false));
  if (do_lower_case && model->problem.empty()) {
    model->problem = absl::StrCat(path, ": 'do_lower_case' is true, which is not served");
  }
  return absl::OkStatus();
}

absl::Status ReadPrompts(const std::string& path, SentenceTransformers* model) {
  ASSIGN_OR_RETURN(const std::optional<JsonObject> file, ParseIfThere(path));
  if (!file.has_value()) {
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(model->prompts, file->StringMap("prompts"));
  ASSIGN_OR_RETURN(model->default_prompt_name, file->StringOr("default_prompt_name", ""));
  if (!model->default_prompt_name.empty() && !model->prompts.contains(model->default_prompt_name)) {
    return file->Invalid("default_prompt_name", "must be one of the prompts");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SentenceTransformers> LoadSentenceTransformers(const std::string& directory) {
  SentenceTransformers model;
  ASSIGN_OR_RETURN(const std::optional<std::string> modules,
                   ReadIfThere(absl::StrCat(directory, "/modules.json")));
  if (modules.has_value()) {
    RETURN_IF_ERROR(ReadModules(directory, *modules, &model));
  } else {
    RETURN_IF_ERROR(ReadPooling(absl::StrCat(directory, "/1_Pooling/config.json"), &model));
  }
  RETURN_IF_ERROR(ReadTextSettings(absl::StrCat(directory, "/sentence_bert_config.json"), &model));
  RETURN_IF_ERROR(
      ReadPrompts(absl::StrCat(directory, "/config_sentence_transformers.json"), &model));
  return model;
}

}  // namespace ferrite

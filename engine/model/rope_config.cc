#include "engine/model/rope_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

constexpr NumberRange kThetaRange = {.min = 0, .max = 1e18, .min_excluded = true};
constexpr NumberRange kPositiveRange = {.min = 0, .max = 1e6, .min_excluded = true};
constexpr NumberRange kFromZeroRange = {.min = 0, .max = 1e6};
constexpr NumberRange kPositionsRange = {.min = 1, .max = 1 << 24};

struct TypeName {
  std::string_view name;
  RopeConfig::Type type;
};

constexpr std::array<TypeName, 5> kTypes = {{{"default", RopeConfig::Type::kDefault},
                                             {"linear", RopeConfig::Type::kLinear},
                                             {"dynamic", RopeConfig::Type::kDynamic},
                                             {"llama3", RopeConfig::Type::kLlama3},
                                             {"yarn", RopeConfig::Type::kYarn}}};

// Each type uses some of these and, as in transformers, lets the others be. "finetuned" tells where
// the weights come from.
constexpr std::array<std::string_view, 15> kUnderstoodRopeKeys = {
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "finetuned",
    "high_freq_factor",
    "low_freq_factor",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_theta",
    "rope_type",
    "truncate",
    "type"};

// Reads one object of scaling parameters, with what else of the file they lean on.
class Reader {
 public:
  Reader(const JsonObject& file, const JsonObject& parameters, int32_t max_position_embeddings)
      : file_(file), parameters_(parameters), max_positions_(max_position_embeddings) {}

  absl::StatusOr<RopeConfig> Read(bool type_required) {
    RETURN_IF_ERROR(RefuseUnknownKeys());
    RETURN_IF_ERROR(ReadType(type_required));
    RETURN_IF_ERROR(ReadTheta());
    if (rope_.type != RopeConfig::Type::kDefault) {
      ASSIGN_OR_RETURN(rope_.factor, parameters_.Number("factor", kPositiveRange));
    }
    if (rope_.type == RopeConfig::Type::kLlama3) {
      RETURN_IF_ERROR(ReadOriginalPositions());
      RETURN_IF_ERROR(ReadLlama3());
    } else if (rope_.type == RopeConfig::Type::kYarn) {
      RETURN_IF_ERROR(ReadOriginalPositions());
      RETURN_IF_ERROR(ReadYarn());
    }
    return rope_;
  }

 private:
  absl::Status RefuseUnknownKeys() const {
    for (const std::string& key : parameters_.KeysInEffect()) {
      if (std::find(kUnderstoodRopeKeys.begin(), kUnderstoodRopeKeys.end(), key) ==
          kUnderstoodRopeKeys.end()) {
        return parameters_.Unimplemented(key.c_str(), "is not supported");
      }
    }
    ASSIGN_OR_RETURN(const auto partial,
                     parameters_.OptionalNumber("partial_rotary_factor", kFromZeroRange));
    return partial.value_or(1) == 1 ? absl::OkStatus()
                                    : parameters_.Unimplemented("partial_rotary_factor",
                                                                "is not supported unless it is 1");
  }

  absl::Status ReadType(bool required) {
    const char* key = parameters_.Has("rope_type") ? "rope_type" : "type";
    ASSIGN_OR_RETURN(const std::string name, parameters_.StringOr(key, required ? "" : "default"));
    if (name.empty()) {
      return parameters_.Invalid("rope_type", "must name the kind of scaling");
    }
    ASSIGN_OR_RETURN(const std::string old_name, parameters_.StringOr("type", name));
    if (old_name != name) {
      return parameters_.Invalid("type", absl::StrCat("must equal rope_type (\"", name, "\")"));
    }
    const auto known = std::find_if(kTypes.begin(), kTypes.end(),
                                    [&](const TypeName& type) { return type.name == name; });
    if (known == kTypes.end()) {
      return parameters_.Unimplemented(
          key, "must be a supported one (default, linear, dynamic, llama3, yarn)");
    }
    rope_.type = known->type;
    return absl::OkStatus();
  }

  absl::Status ReadTheta() {
    ASSIGN_OR_RETURN(const auto outer, file_.OptionalNumber("rope_theta", kThetaRange));
    ASSIGN_OR_RETURN(const auto inner, parameters_.OptionalNumber("rope_theta", kThetaRange));
    if (outer.has_value() && inner.has_value() && *outer != *inner) {
      return parameters_.Invalid("rope_theta",
                                 absl::StrCat("must equal rope_theta (", *outer, ")"));
    }
    rope_.theta = inner.value_or(outer.value_or(rope_.theta));
    return absl::OkStatus();
  }

  absl::Status ReadOriginalPositions() {
    const char* key = "original_max_position_embeddings";
    ASSIGN_OR_RETURN(const auto outer, file_.OptionalNumber(key, kPositionsRange));
    ASSIGN_OR_RETURN(const auto inner, parameters_.OptionalNumber(key, kPositionsRange));
    if (outer.has_value() && inner.has_value() && *outer != *inner) {
      return parameters_.Invalid(key, absl::StrCat("must equal ", key, " (", *outer, ")"));
    }
    rope_.original_max_position_embeddings = inner.value_or(outer.value_or(max_positions_));
    return absl::OkStatus();
  }

  absl::Status ReadLlama3() {
    ASSIGN_OR_RETURN(rope_.low_freq_factor, parameters_.Number("low_freq_factor", kPositiveRange));
    ASSIGN_OR_RETURN(rope_.high_freq_factor,
                     parameters_.Number("high_freq_factor", kPositiveRange));
    if (rope_.high_freq_factor <= rope_.low_freq_factor) {
      return parameters_.Invalid("high_freq_factor", absl::StrCat("must be above low_freq_factor (",
                                                                  rope_.low_freq_factor, ")"));
    }
    return absl::OkStatus();
  }

  // A positive number; zero counts as absent, as it does in transformers.
  absl::StatusOr<double> NonZeroOr(const char* key, double otherwise) const {
    ASSIGN_OR_RETURN(const auto value, parameters_.OptionalNumber(key, kFromZeroRange));
    return value.value_or(0) == 0 ? otherwise : *value;
  }

  absl::Status ReadYarn() {
    if (rope_.theta <= 1) {
      const JsonObject& holder = parameters_.Has("rope_theta") ? parameters_ : file_;
      return holder.Invalid("rope_theta", "must be above 1 for yarn");
    }
    ASSIGN_OR_RETURN(rope_.beta_fast, NonZeroOr("beta_fast", rope_.beta_fast));
    ASSIGN_OR_RETURN(rope_.beta_slow, NonZeroOr("beta_slow", rope_.beta_slow));
    ASSIGN_OR_RETURN(rope_.truncate, parameters_.BoolOr("truncate", true));
    ASSIGN_OR_RETURN(const double mscale, NonZeroOr("mscale", 0));
    ASSIGN_OR_RETURN(const double mscale_all_dim, NonZeroOr("mscale_all_dim", 0));
    ASSIGN_OR_RETURN(const auto attention_factor,
                     parameters_.OptionalNumber("attention_factor", kPositiveRange));
    const auto scale = [&](double of) {
      return rope_.factor <= 1 ? 1.0 : 0.1 * of * std::log(rope_.factor) + 1.0;
    };
    const bool has_both = mscale != 0 && mscale_all_dim != 0;
    rope_.attention_factor =
        attention_factor.value_or(has_both ? scale(mscale) / scale(mscale_all_dim) : scale(1));
    return absl::OkStatus();
  }

  const JsonObject& file_;
  const JsonObject& parameters_;
  const int32_t max_positions_;
  RopeConfig rope_;
};

// Null, or an object that says nothing, counts as absent.
absl::StatusOr<std::optional<RopeConfig>> ReadObject(const JsonObject& file, const char* key,
                                                     bool type_required, int32_t max_positions) {
  ASSIGN_OR_RETURN(const auto parameters, file.OptionalObject(key));
  if (!parameters.has_value() || parameters->KeysInEffect().empty()) {
    return std::nullopt;
  }
  ASSIGN_OR_RETURN(RopeConfig rope, Reader(file, *parameters, max_positions).Read(type_required));
  return rope;
}

}  // namespace

absl::StatusOr<RopeConfig> ReadRopeConfig(const JsonObject& file, int32_t max_position_embeddings) {
  ASSIGN_OR_RETURN(const auto older, ReadObject(file, "rope_scaling", /*type_required=*/true,
                                                max_position_embeddings));
  ASSIGN_OR_RETURN(const auto newer, ReadObject(file, "rope_parameters", /*type_required=*/false,
                                                max_position_embeddings));
  if (older.has_value() && newer.has_value() && *older != *newer) {
    return file.Invalid("rope_parameters", "must say the same as rope_theta and rope_scaling");
  }
  if (older.has_value() || newer.has_value()) {
    return newer.has_value() ? *newer : *older;
  }
  RopeConfig rope;
  ASSIGN_OR_RETURN(const auto theta, file.OptionalNumber("rope_theta", kThetaRange));
  rope.theta = theta.value_or(rope.theta);
  return rope;
}

}  // namespace ferrite

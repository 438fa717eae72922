#include "engine/tokenizer/normalizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"
#include "engine/tokenizer/utf8.h"

namespace ferrite {

void PrependNormalizer::Apply(std::string* text) const {
  if (!text->empty()) text->insert(0, prefix);
}

void ReplaceNormalizer::Apply(std::string* text) const {
  *text = ReplaceAll(*text, pattern, content);
}

absl::StatusOr<ReplaceNormalizer> ParseReplace(const JsonCursor& component) {
  ASSIGN_OR_RETURN(const JsonCursor pattern, component.Member("pattern"));
  if (pattern.Find("Regex").has_value()) {
    return pattern.Unimplemented("a Regex pattern is not supported");
  }
  ReplaceNormalizer replace;
  ASSIGN_OR_RETURN(replace.pattern, pattern.String("String"));
  if (replace.pattern.empty()) return pattern.Unimplemented("an empty String is not supported");
  ASSIGN_OR_RETURN(replace.content, component.String("content"));
  return replace;
}

absl::StatusOr<Normalizer> Normalizer::Parse(const std::optional<JsonCursor>& component) {
  Normalizer normalizer;
  if (!component.has_value()) return normalizer;
  ASSIGN_OR_RETURN(const std::vector<TypedJson> parts, FlattenSequence(*component, "normalizers"));
  for (const auto& [type, body] : parts) {
    if (type == "Prepend") {
      ASSIGN_OR_RETURN(std::string prefix, body.String("prepend"));
      normalizer.steps_.push_back(PrependNormalizer{std::move(prefix)});
    } else if (type == "Replace") {
      ASSIGN_OR_RETURN(ReplaceNormalizer replace, ParseReplace(body));
      normalizer.steps_.push_back(std::move(replace));
    } else {
      return body.Unimplemented(absl::StrCat("normalizer ", type, " is not supported"));
    }
  }
  return normalizer;
}

void Normalizer::Apply(std::string* text) const {
  for (const Step& step : steps_) {
    std::visit([text](const auto& normalizer) { normalizer.Apply(text); }, step);
  }
}

}  // namespace ferrite

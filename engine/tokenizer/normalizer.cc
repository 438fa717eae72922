#include "engine/tokenizer/normalizer.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"
#include "engine/tokenizer/utf8.h"

namespace ferrite {
namespace {

std::optional<NormalForm> FormOf(std::string_view type) {
  if (type == "NFC") return NormalForm::kNfc;
  if (type == "NFD") return NormalForm::kNfd;
  if (type == "NFKC") return NormalForm::kNfkc;
  if (type == "NFKD") return NormalForm::kNfkd;
  return std::nullopt;
}

absl::Status Apply(const PrependNormalizer& step, std::string* text) {
  if (!text->empty()) text->insert(0, step.prefix);
  return absl::OkStatus();
}

absl::Status Apply(const ReplaceNormalizer& step, std::string* text) { return step.Apply(text); }

absl::Status Apply(const StripNormalizer& step, std::string* text) {
  if (step.right) text->resize(text->size() - TrailingWhiteSpace(*text));
  if (step.left) text->erase(0, LeadingWhiteSpace(*text));
  return absl::OkStatus();
}

absl::Status Apply(const LowercaseNormalizer&, std::string* text) {
  ToLowerCase(text);
  return absl::OkStatus();
}

absl::Status Apply(const NormalFormConverter& step, std::string* text) {
  step.Apply(text);
  return absl::OkStatus();
}

}  // namespace

absl::Status ReplaceNormalizer::Apply(std::string* text) const {
  if (!regex.has_value()) {
    *text = ReplaceAll(*text, pattern, content);
    return absl::OkStatus();
  }
  Regex::Scratch scratch;
  std::vector<TextRange> matches;
  RETURN_IF_ERROR(regex->FindAll(*text, &scratch, &matches));
  std::string result;
  size_t done = 0;
  for (const TextRange& match : matches) {
    result.append(*text, done, match.begin - done).append(content);
    done = match.end;
  }
  *text = result.append(*text, done);
  return absl::OkStatus();
}

absl::StatusOr<Regex> ParseRegex(const JsonCursor& pattern) {
  ASSIGN_OR_RETURN(const std::string text, pattern.String("Regex"));
  absl::StatusOr<Regex> regex = Regex::FromOniguruma(text);
  if (regex.ok()) return regex;
  const std::string message(regex.status().message());
  return absl::IsUnimplemented(regex.status()) ? pattern.Unimplemented(message)
                                               : pattern.Invalid(message);
}

absl::StatusOr<ReplaceNormalizer> ParseReplace(const JsonCursor& component) {
  ASSIGN_OR_RETURN(const JsonCursor pattern, component.Member("pattern"));
  ReplaceNormalizer replace;
  ASSIGN_OR_RETURN(replace.content, component.String("content"));
  if (pattern.Find("Regex").has_value()) {
    ASSIGN_OR_RETURN(replace.regex, ParseRegex(pattern));
    return replace;
  }
  ASSIGN_OR_RETURN(replace.pattern, pattern.String("String"));
  if (replace.pattern.empty()) return pattern.Unimplemented("an empty String is not supported");
  return replace;
}

absl::Status Normalizer::AddStep(const TypedJson& part) {
  const auto& [type, body] = part;
  if (type == "Prepend") {
    ASSIGN_OR_RETURN(std::string prefix, body.String("prepend"));
    steps_.push_back(PrependNormalizer{std::move(prefix)});
  } else if (type == "Replace") {
    ASSIGN_OR_RETURN(ReplaceNormalizer replace, ParseReplace(body));
    steps_.push_back(std::move(replace));
  } else if (type == "Strip") {
    ASSIGN_OR_RETURN(const bool left, body.Bool("strip_left"));
    ASSIGN_OR_RETURN(const bool right, body.Bool("strip_right"));
    steps_.push_back(StripNormalizer{left, right});
  } else if (type == "Lowercase") {
    steps_.push_back(LowercaseNormalizer{});
  } else if (const auto form = FormOf(type); form.has_value()) {
    steps_.push_back(NormalFormConverter(*form));
  } else {
    return body.Unimplemented(absl::StrCat("normalizer ", type, " is not supported"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Normalizer> Normalizer::Parse(const std::optional<JsonCursor>& component) {
  Normalizer normalizer;
  if (!component.has_value()) return normalizer;
  ASSIGN_OR_RETURN(const std::vector<TypedJson> parts, FlattenSequence(*component, "normalizers"));
  for (const TypedJson& part : parts) {
    RETURN_IF_ERROR(normalizer.AddStep(part));
  }
  return normalizer;
}

absl::Status Normalizer::Apply(std::string* text) const {
  for (const Step& step : steps_) {
    RETURN_IF_ERROR(std::visit(
        [text](const auto& normalizer) { return ferrite::Apply(normalizer, text); }, step));
  }
  return absl::OkStatus();
}

bool Normalizer::KeepsStart() const {
  return std::all_of(steps_.begin(), steps_.end(), [](const Step& step) {
    return std::holds_alternative<LowercaseNormalizer>(step) ||
           std::holds_alternative<NormalFormConverter>(step);
  });
}

}  // namespace ferrite

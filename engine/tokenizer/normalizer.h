// The first change that text undergoes: what a tokenizer.json calls its normalizer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tokenizer/json_cursor.h"
#include "engine/tokenizer/normal_form.h"
#include "engine/tokenizer/regex.h"

namespace ferrite {

// Puts text before whatever is not empty.
struct PrependNormalizer {
  std::string prefix;
};

// Replaces every occurrence of a string, or match of a regular expression, by a fixed text.
struct ReplaceNormalizer {
  std::string pattern;
  std::optional<Regex> regex;  // then there is no pattern
  std::string content;
  absl::Status Apply(std::string* text) const;
};

// Removes white space from the ends.
struct StripNormalizer {
  bool left;
  bool right;
};

struct LowercaseNormalizer {};

// Immutable and thread-safe.
class Normalizer {
 public:
  // `component` is null if the file has no normalizer, which changes nothing. Unimplemented names
  // what is not supported.
  static absl::StatusOr<Normalizer> Parse(const std::optional<JsonCursor>& component);

  // Normalizes one stretch of text (valid UTF-8) between added tokens, in place. InvalidArgument if
  // a regular expression finds it too hard.
  absl::Status Apply(std::string* text) const;

  bool empty() const { return steps_.empty(); }
  // Whether the first character of the text always comes from the first one before.
  bool KeepsStart() const;

 private:
  using Step = std::variant<PrependNormalizer, ReplaceNormalizer, StripNormalizer,
                            LowercaseNormalizer, NormalFormConverter>;
  absl::Status AddStep(const TypedJson& part);
  std::vector<Step> steps_;
};

// Reads the members of a Replace component, which normalizers and decoders share: pattern
// {"String": ...} or {"Regex": ...}, and content.
absl::StatusOr<ReplaceNormalizer> ParseReplace(const JsonCursor& component);

// Compiles the value of `pattern`'s member "Regex", a pattern in Oniguruma's syntax.
absl::StatusOr<Regex> ParseRegex(const JsonCursor& pattern);

}  // namespace ferrite

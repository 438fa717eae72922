// The first change that text undergoes: what a tokenizer.json calls its normalizer.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer/json_cursor.h"

namespace ferrite {

// Puts text before whatever is not empty.
struct PrependNormalizer {
  std::string prefix;
  void Apply(std::string* text) const;
};

// Replaces every occurrence of a string.
struct ReplaceNormalizer {
  std::string pattern;
  std::string content;
  void Apply(std::string* text) const;
};

// Immutable and thread-safe.
class Normalizer {
 public:
  // `component` is null if the file has no normalizer, which changes nothing. Unimplemented names
  // what is not supported.
  static absl::StatusOr<Normalizer> Parse(const std::optional<JsonCursor>& component);

  // Normalizes one stretch of text between added tokens, in place.
  void Apply(std::string* text) const;

 private:
  using Step = std::variant<PrependNormalizer, ReplaceNormalizer>;
  std::vector<Step> steps_;
};

// Reads the members of a Replace component, which normalizers and decoders share: pattern
// {"String": ...} and content. A regular expression is Unimplemented.
absl::StatusOr<ReplaceNormalizer> ParseReplace(const JsonCursor& component);

}  // namespace ferrite

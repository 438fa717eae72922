// Tokens that are recognised in text before anything else, such as "<s>" or "<|im_end|>".
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/ids.h"
#include "engine/tokenizer/json_cursor.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/vocabulary.h"

namespace ferrite {

struct AddedToken {
  TokenId id;
  std::string content;
  std::string form;  // what the pipeline sees: the content, normalized if the token is
  bool single_word;  // counts only where no letter, digit or the like adjoins it
  bool lstrip;       // takes white space before it along
  bool rstrip;       // takes white space after it along
  bool normalized;   // is searched for in normalized text, not in the raw one
  bool special;
};

// A stretch of text, or an added token.
struct TextSegment {
  std::string_view text;
  const AddedToken* token;  // null for text
};

// Finds a set of strings in text: the leftmost first, of those the longest.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  // `patterns` are not empty; of equal ones the first counts.
  explicit AddedTokenMatcher(std::vector<std::pair<std::string, const AddedToken*>> patterns);

  // Appends the segments of `text` (valid UTF-8) in order, none of them empty text.
  void Split(std::string_view text, std::vector<TextSegment>* out) const;

 private:
  struct Match {
    size_t length;
    const AddedToken* token;
  };
  std::optional<Match> LongestAt(std::string_view text) const;

  std::vector<std::pair<std::string, const AddedToken*>> patterns_;  // sorted
  // Where the patterns that start with a byte begin; those of byte b end where those of b+1 begin.
  std::array<uint32_t, 257> first_{};
};

// Immutable and thread-safe. Pinned in memory: matchers and segments refer to its tokens.
class AddedTokens {
 public:
  // `list` is null if the file has none. InvalidArgument if a token contradicts another one or the
  // vocabulary; Unimplemented names a flag that is not supported.
  static absl::StatusOr<std::unique_ptr<const AddedTokens>> Parse(
      const std::optional<JsonCursor>& list, const Vocabulary& vocabulary,
      const Normalizer& normalizer);

  AddedTokens(const AddedTokens&) = delete;
  AddedTokens& operator=(const AddedTokens&) = delete;

  const AddedToken* Find(TokenId id) const;
  const AddedToken* Find(std::string_view content) const;
  const std::vector<AddedToken>& tokens() const { return tokens_; }

  const AddedTokenMatcher& raw_matcher() const { return raw_; }
  const AddedTokenMatcher& normalized_matcher() const { return normalized_; }

 private:
  AddedTokens() = default;
  absl::Status Add(AddedToken token, const JsonCursor& entry, const Vocabulary& vocabulary);
  void BuildMatchers();

  std::vector<AddedToken> tokens_;
  std::unordered_map<TokenId, size_t> by_id_;
  std::unordered_map<std::string_view, const AddedToken*> by_content_;
  AddedTokenMatcher raw_;
  AddedTokenMatcher normalized_;
};

}  // namespace ferrite

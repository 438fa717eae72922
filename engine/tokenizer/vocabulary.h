// The model's own pieces and their ids.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/ids.h"
#include "engine/tokenizer/json_cursor.h"

namespace ferrite {

// Ids above this are taken for a broken file: tables are as long as the largest id.
inline constexpr TokenId kMaxTokenId = 10'000'000;

// Immutable. Pinned in memory, since the index refers to the text.
class Vocabulary {
 public:
  // Parses an object of piece to id. InvalidArgument for an id that is no integer, out of
  // [0, kMaxTokenId] or taken twice.
  static absl::StatusOr<std::unique_ptr<const Vocabulary>> Parse(const JsonCursor& vocab);

  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  std::optional<TokenId> Find(std::string_view token) const;
  // nullopt if no piece has this id.
  std::optional<std::string_view> Token(TokenId id) const;
  // One more than the largest id.
  TokenId size() const { return static_cast<TokenId>(entries_.size()); }

 private:
  struct Entry {
    uint32_t offset = 0;
    int32_t length = -1;  // -1: nobody has this id
  };
  Vocabulary() = default;

  std::string text_;  // all pieces, one after the other
  std::vector<Entry> entries_;
  std::unordered_map<std::string_view, TokenId> ids_;
};

}  // namespace ferrite

// The model's own pieces and their ids.
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/ids.h"
#include "engine/tokenizer/json_cursor.h"
#include "engine/tokenizer/token_index.h"

namespace ferrite {

// Ids above this are taken for a broken file: tables are as long as the largest id.
inline constexpr TokenId kMaxTokenId = 10'000'000;

// Immutable and thread-safe. Pinned in memory, since models refer to it.
class Vocabulary {
 public:
  // Parses an object of piece to id. InvalidArgument for an id that is no integer, out of
  // [0, kMaxTokenId] or taken twice.
  static absl::StatusOr<std::unique_ptr<const Vocabulary>> Parse(const JsonCursor& vocab);

  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  std::optional<TokenId> Find(std::string_view token) const {
    const TokenId id = index_.Find(token);
    return id == kNoToken ? std::nullopt : std::optional<TokenId>(id);
  }
  // nullopt if no piece has this id.
  std::optional<std::string_view> Token(TokenId id) const { return index_.Text(id); }
  // One more than the largest id.
  TokenId size() const { return index_.size(); }

 private:
  explicit Vocabulary(TokenIndex index) : index_(std::move(index)) {}
  TokenIndex index_;
};

}  // namespace ferrite

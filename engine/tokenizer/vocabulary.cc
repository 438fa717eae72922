#include "engine/tokenizer/vocabulary.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"
#include "nlohmann/json.hpp"

namespace ferrite {

absl::StatusOr<std::unique_ptr<const Vocabulary>> Vocabulary::Parse(const JsonCursor& vocab) {
  const nlohmann::json& object = vocab.value();
  if (!object.is_object()) return vocab.Invalid("expected an object of piece to id");
  if (object.empty()) return vocab.Invalid("is empty");

  auto result = std::unique_ptr<Vocabulary>(new Vocabulary);
  size_t text_size = 0;
  int64_t max_id = 0;
  for (const auto& [piece, value] : object.items()) {
    ASSIGN_OR_RETURN(const int64_t id, vocab.Integer(piece, 0, kMaxTokenId));
    max_id = std::max(max_id, id);
    text_size += piece.size();
  }
  if (text_size > UINT32_MAX) return vocab.Invalid("holds more than 4 GiB of text");

  result->text_.reserve(text_size);
  result->entries_.resize(static_cast<size_t>(max_id) + 1);
  result->ids_.reserve(object.size());
  for (const auto& [piece, value] : object.items()) {
    const auto id = value.get<TokenId>();
    Entry& entry = result->entries_[static_cast<size_t>(id)];
    if (entry.length >= 0) {
      return vocab.Invalid(absl::StrCat("\"", piece, "\" and \"",
                                        result->text_.substr(entry.offset, entry.length),
                                        "\" have the same id ", id));
    }
    entry = {static_cast<uint32_t>(result->text_.size()), static_cast<int32_t>(piece.size())};
    result->text_.append(piece);
    result->ids_.emplace(std::string_view(result->text_).substr(entry.offset), id);
  }
  return result;
}

std::optional<TokenId> Vocabulary::Find(std::string_view token) const {
  const auto it = ids_.find(token);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

std::optional<std::string_view> Vocabulary::Token(TokenId id) const {
  if (id < 0 || id >= size()) return std::nullopt;
  const Entry& entry = entries_[static_cast<size_t>(id)];
  if (entry.length < 0) return std::nullopt;
  return std::string_view(text_).substr(entry.offset, static_cast<size_t>(entry.length));
}

}  // namespace ferrite

#include "engine/tokenizer/vocabulary.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/status_macros.h"
#include "nlohmann/json.hpp"

namespace ferrite {

absl::StatusOr<std::unique_ptr<const Vocabulary>> Vocabulary::Parse(const JsonCursor& vocab) {
  const nlohmann::json& object = vocab.value();
  if (!object.is_object()) return vocab.Invalid("expected an object of piece to id");
  if (object.empty()) return vocab.Invalid("is empty");

  size_t bytes = 0;
  TokenId max_id = 0;
  for (auto it = object.begin(); it != object.end(); ++it) {
    const nlohmann::json& value = *it;
    // The plain case costs no path for a message.
    if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{kMaxTokenId}) {
      RETURN_IF_ERROR(vocab.Integer(it.key(), 0, kMaxTokenId).status());
    }
    max_id = std::max(max_id, value.get<TokenId>());
    bytes += it.key().size();
  }
  if (bytes > UINT32_MAX) return vocab.Invalid("holds more than 4 GiB of text");

  TokenIndex index(object.size(), bytes, max_id + 1);
  for (auto it = object.begin(); it != object.end(); ++it) {
    const auto id = it->get<TokenId>();
    if (const auto other = index.Text(id); other.has_value()) {
      return vocab.Invalid(absl::StrCat("\"", it.key(), "\" and \"",
                                        absl::string_view(other->data(), other->size()),
                                        "\" have the same id ", id));
    }
    index.Add(id, it.key());
  }
  return std::unique_ptr<const Vocabulary>(new Vocabulary(std::move(index)));
}

}  // namespace ferrite

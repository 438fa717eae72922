#include "engine/tokenizer/bpe.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "engine/status_macros.h"
#include "engine/tokenizer/utf8.h"
#include "nlohmann/json.hpp"

namespace ferrite {
namespace {

constexpr int32_t kNoSymbol = -1;

// The two sides of a merge, written "a b" or ["a", "b"].
struct MergeText {
  std::string_view left;
  std::string_view right;
};

std::optional<MergeText> ReadMerge(const nlohmann::json& merge) {
  if (merge.is_string()) {
    const std::string_view text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
      return std::nullopt;
    }
    return MergeText{text.substr(0, space), text.substr(space + 1)};
  }
  if (!merge.is_array() || merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string()) {
    return std::nullopt;
  }
  return MergeText{merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>()};
}

std::string Quoted(std::string_view text) {
  return absl::StrCat("\"", absl::string_view(text.data(), text.size()), "\"");
}

// Unimplemented unless the member is absent, null or an empty string.
absl::Status RequireEmpty(const JsonCursor& model, std::string_view key) {
  const std::optional<JsonCursor> member = model.Find(key);
  if (!member.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string text, member->String());
  return text.empty() ? absl::OkStatus()
                      : member->Unimplemented(Quoted(text) + " is not supported, only none");
}

}  // namespace

absl::StatusOr<Bpe> Bpe::Parse(const JsonCursor& model, const Vocabulary& vocabulary) {
  Bpe bpe(vocabulary);
  RETURN_IF_ERROR(bpe.ParseOptions(model));
  bpe.IndexCharacters();
  ASSIGN_OR_RETURN(const JsonCursor merges, model.Member("merges"));
  RETURN_IF_ERROR(bpe.ParseMerges(merges));
  return bpe;
}

absl::Status Bpe::ParseOptions(const JsonCursor& model) {
  RETURN_IF_ERROR(RequireEmpty(model, "continuing_subword_prefix"));
  RETURN_IF_ERROR(RequireEmpty(model, "end_of_word_suffix"));
  if (const auto dropout = model.Find("dropout"); dropout.has_value()) {
    if (!dropout->value().is_number()) return dropout->Invalid("expected a number");
    if (dropout->value().get<double>() != 0.0) {
      return dropout->Unimplemented("merge dropout is not supported");
    }
  }
  ASSIGN_OR_RETURN(byte_fallback_, model.BoolOr("byte_fallback", false));
  ASSIGN_OR_RETURN(fuse_unk_, model.BoolOr("fuse_unk", false));
  ASSIGN_OR_RETURN(ignore_merges_, model.BoolOr("ignore_merges", false));
  unk_id_ = kNoToken;
  if (const auto unk = model.Find("unk_token"); unk.has_value()) {
    ASSIGN_OR_RETURN(const std::string token, unk->String());
    const std::optional<TokenId> id = vocabulary_->Find(token);
    if (!id.has_value()) return unk->Invalid(Quoted(token) + " is not in the vocabulary");
    unk_id_ = *id;
  }
  return absl::OkStatus();
}

void Bpe::IndexCharacters() {
  ascii_ids_.fill(kNoToken);
  for (TokenId id = 0; id < vocabulary_->size(); ++id) {
    const std::optional<std::string_view> token = vocabulary_->Token(id);
    if (!token.has_value() || !IsOneCharacter(*token)) continue;
    const char32_t code_point = FirstCodePoint(*token);
    if (code_point < ascii_ids_.size()) {
      ascii_ids_[code_point] = id;
    } else {
      character_ids_[code_point] = id;
    }
  }
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    byte_ids_[byte] = vocabulary_->Find(absl::StrFormat("<0x%02X>", byte)).value_or(kNoToken);
  }
}

absl::Status Bpe::ParseMerges(const JsonCursor& merges) {
  const nlohmann::json& list = merges.value();
  if (!list.is_array()) return merges.Invalid("expected an array");
  std::vector<MergeTable::Merge> pairs;
  pairs.reserve(list.size());
  std::string joined;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::optional<MergeText> text = ReadMerge(list[i]);
    if (!text.has_value()) return merges.At(i).Invalid("expected \"a b\" or [\"a\", \"b\"]");
    joined.assign(text->left).append(text->right);
    const auto left = vocabulary_->Find(text->left);
    const auto right = vocabulary_->Find(text->right);
    const auto result = vocabulary_->Find(joined);
    if (!left.has_value() || !right.has_value() || !result.has_value()) {
      const std::string_view missing = !left.has_value()    ? text->left
                                       : !right.has_value() ? text->right
                                                            : std::string_view(joined);
      return merges.At(i).Invalid(Quoted(missing) + " is not in the vocabulary");
    }
    pairs.push_back({*left, *right, *result});
  }
  merges_ = MergeTable(pairs);
  return absl::OkStatus();
}

TokenId Bpe::CharacterId(std::string_view character) const {
  const char32_t code_point = FirstCodePoint(character);
  if (code_point < ascii_ids_.size()) return ascii_ids_[code_point];
  const auto it = character_ids_.find(code_point);
  return it == character_ids_.end() ? kNoToken : it->second;
}

// False, and nothing appended, unless the vocabulary has all of the character's bytes.
bool Bpe::AppendBytes(std::string_view character, std::vector<Symbol>* symbols) const {
  const auto id = [this](char byte) { return byte_ids_[static_cast<unsigned char>(byte)]; };
  if (std::any_of(character.begin(), character.end(),
                  [&id](char byte) { return id(byte) == kNoToken; })) {
    return false;
  }
  for (const char byte : character) {
    symbols->push_back({id(byte), 0, 0});
  }
  return true;
}

void Bpe::Split(std::string_view piece, std::vector<Symbol>* symbols) const {
  // The reference writes a pending unknown only before a character of the vocabulary or at the
  // end: bytes overtake it. Ids must match, so they do here too.
  bool unk_pending = false;
  const auto flush_unk = [this, &unk_pending, symbols] {
    if (unk_pending) symbols->push_back({unk_id_, 0, 0});
    unk_pending = false;
  };
  for (size_t i = 0; i < piece.size();) {
    const std::string_view character = piece.substr(i, Utf8Length(piece[i]));
    i += character.size();
    if (const TokenId id = CharacterId(character); id != kNoToken) {
      flush_unk();
      symbols->push_back({id, 0, 0});
    } else if (byte_fallback_ && AppendBytes(character, symbols)) {
      continue;
    } else if (unk_id_ != kNoToken) {
      if (!fuse_unk_) flush_unk();
      unk_pending = true;
    }
  }
  flush_unk();
  const auto count = static_cast<int32_t>(symbols->size());
  for (int32_t i = 0; i < count; ++i) {
    (*symbols)[i].previous = i - 1;
    (*symbols)[i].next = i + 1 < count ? i + 1 : kNoSymbol;
  }
}

// Queues the merge of a symbol with its right neighbour, if there is one.
void Bpe::PushPair(int32_t left, Scratch* scratch) const {
  const Symbol& symbol = scratch->symbols_[left];
  if (symbol.next == kNoSymbol) return;
  const uint32_t rank = merges_.Rank(symbol.id, scratch->symbols_[symbol.next].id);
  if (rank == MergeTable::kNoRank) return;
  scratch->queue_.push_back(uint64_t{rank} << 32 | static_cast<uint32_t>(left));
}

void Bpe::Merge(Scratch* scratch) const {
  auto& [symbols, queue] = *scratch;
  queue.clear();
  for (int32_t i = 0; i < static_cast<int32_t>(symbols.size()); ++i) {
    PushPair(i, scratch);
  }
  std::make_heap(queue.begin(), queue.end(), std::greater<>());
  const auto push = [&](int32_t left) {
    const size_t size = queue.size();
    PushPair(left, scratch);
    if (queue.size() > size) std::push_heap(queue.begin(), queue.end(), std::greater<>());
  };
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const uint64_t top = queue.back();
    queue.pop_back();
    const auto rank = static_cast<uint32_t>(top >> 32);
    const auto index = static_cast<int32_t>(static_cast<uint32_t>(top));
    Symbol& left = symbols[index];
    if (left.id == kNoToken || left.next == kNoSymbol) continue;
    // Either side may have merged since. Like the reference, an entry still counts if what stands
    // there now merges to the same token.
    Symbol& right = symbols[left.next];
    const uint32_t now = merges_.Rank(left.id, right.id);
    if (now == MergeTable::kNoRank || merges_.Result(now) != merges_.Result(rank)) continue;

    left.id = merges_.Result(rank);
    left.next = right.next;
    right.id = kNoToken;
    if (left.next != kNoSymbol) symbols[left.next].previous = index;
    if (left.previous != kNoSymbol) push(left.previous);
    push(index);
  }
}

void Bpe::Encode(std::string_view piece, Scratch* scratch, std::vector<TokenId>* out) const {
  if (ignore_merges_) {
    if (const std::optional<TokenId> id = vocabulary_->Find(piece); id.has_value()) {
      out->push_back(*id);
      return;
    }
  }
  scratch->symbols_.clear();
  Split(piece, &scratch->symbols_);
  Merge(scratch);
  for (const Symbol& symbol : scratch->symbols_) {
    if (symbol.id != kNoToken) out->push_back(symbol.id);
  }
}

}  // namespace ferrite

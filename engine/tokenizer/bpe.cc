#include "engine/tokenizer/bpe.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "engine/status_macros.h"
#include "engine/tokenizer/byte_alphabet.h"
#include "engine/tokenizer/utf8.h"
#include "nlohmann/json.hpp"

namespace ferrite {
namespace {

constexpr int32_t kNoSymbol = -1;

// Up to this many symbols, looking through all of them beats keeping a heap.
constexpr size_t kFew = 48;

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

absl::StatusOr<Bpe> Bpe::Parse(const JsonCursor& model, const Vocabulary& vocabulary,
                               bool byte_level) {
  Bpe bpe(vocabulary);
  bpe.byte_level_ = byte_level;
  RETURN_IF_ERROR(bpe.ParseOptions(model));
  RETURN_IF_ERROR(bpe.IndexUnits(model));
  ASSIGN_OR_RETURN(const JsonCursor merges, model.Member("merges"));
  RETURN_IF_ERROR(bpe.ParseMerges(merges));
  bpe.whole_ = std::make_unique<std::atomic<Whole>[]>(static_cast<size_t>(vocabulary.size()));
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
  if (const auto unk = model.Find("unk_token"); unk.has_value()) {
    ASSIGN_OR_RETURN(const std::string token, unk->String());
    const std::optional<TokenId> id = vocabulary_->Find(token);
    if (!id.has_value()) return unk->Invalid(Quoted(token) + " is not in the vocabulary");
    unk_id_ = *id;
  }
  return absl::OkStatus();
}

absl::Status Bpe::IndexUnits(const JsonCursor& model) {
  if (byte_level_) {
    std::vector<std::pair<TokenId, std::string>> tokens;
    size_t size = 0;
    for (TokenId id = 0; id < vocabulary_->size(); ++id) {
      const auto token = vocabulary_->Token(id);
      std::optional<std::string> bytes;
      if (token.has_value()) bytes = BytesOfCharacters(*token);
      if (!bytes.has_value()) continue;
      size += bytes->size();
      tokens.emplace_back(id, *std::move(bytes));
    }
    bytes_of_tokens_ = TokenIndex(tokens.size(), size, vocabulary_->size());
    for (const auto& [id, bytes] : tokens) {
      bytes_of_tokens_.Add(id, bytes);
      if (bytes.size() == 1) alphabet_.Add(static_cast<unsigned char>(bytes[0]), id);
    }
  } else {
    for (TokenId id = 0; id < vocabulary_->size(); ++id) {
      const auto token = vocabulary_->Token(id);
      if (token.has_value() && IsOneCharacter(*token)) alphabet_.Add(FirstCodePoint(*token), id);
    }
  }
  bool complete = true;
  for (Unit byte = 0; byte < 256; ++byte) {
    byte_ids_[byte] =
        vocabulary_->Find(absl::StrFormat("<0x%02X>", uint32_t{byte})).value_or(kNoToken);
    complete = complete && alphabet_.Id(byte) != kNoToken;
  }
  if (byte_level_ && byte_fallback_ && !complete) {
    return model.Unimplemented("byte_fallback for a byte-level vocabulary is not supported");
  }
  return absl::OkStatus();
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
    const auto bytes = byte_level_ ? bytes_of_tokens_.Text(*result) : std::nullopt;
    // A byte-level token that is spelt in other characters cannot come about.
    if (!byte_level_ || bytes.has_value()) neighbours_.Add(bytes.value_or(joined), byte_level_);
  }
  merges_ = MergeTable(pairs);
  return absl::OkStatus();
}

// False, and nothing appended, unless the vocabulary has all of the character's bytes.
bool Bpe::AppendBytes(std::string_view character, std::vector<TokenId>* ids) const {
  const auto id = [this](char byte) { return byte_ids_[static_cast<unsigned char>(byte)]; };
  if (std::any_of(character.begin(), character.end(),
                  [&id](char byte) { return id(byte) == kNoToken; })) {
    return false;
  }
  for (const char byte : character) {
    ids->push_back(id(byte));
  }
  return true;
}

// Replaces `ids` by those of the word's units.
void Bpe::Split(std::string_view word, std::vector<TokenId>* ids) const {
  ids->clear();
  // The reference writes a pending unknown only before a character of the vocabulary or at the
  // end: bytes overtake it. Ids must match, so they do here too.
  bool unk_pending = false;
  const auto flush_unk = [this, &unk_pending, ids] {
    if (unk_pending) ids->push_back(unk_id_);
    unk_pending = false;
  };
  for (size_t i = 0; i < word.size();) {
    const size_t begin = i;
    const Unit unit = NextUnit(word, &i, byte_level_);
    if (const TokenId id = alphabet_.Id(unit); id != kNoToken) {
      flush_unk();
      ids->push_back(id);
    } else if (byte_fallback_ && AppendBytes(word.substr(begin, i - begin), ids)) {
      continue;
    } else if (unk_id_ != kNoToken) {
      if (!fuse_unk_) flush_unk();
      unk_pending = true;
    }
  }
  flush_unk();
}

// Merges ids_ by looking for the lowest rank, the leftmost of equals, again and again.
void Bpe::MergeFew(Scratch* scratch) const {
  auto& ids = scratch->ids_;
  auto& ranks = scratch->ranks_;  // of each id with the one behind it
  ranks.clear();
  for (size_t i = 0; i + 1 < ids.size(); ++i) {
    ranks.push_back(merges_.Rank(ids[i], ids[i + 1]));
  }
  while (!ranks.empty()) {
    const auto best = std::min_element(ranks.begin(), ranks.end());
    if (*best == MergeTable::kNoRank) break;
    const auto i = static_cast<size_t>(best - ranks.begin());
    ids[i] = merges_.Result(*best);
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(i) + 1);
    ranks.erase(best);
    if (i < ranks.size()) ranks[i] = merges_.Rank(ids[i], ids[i + 1]);
    if (i > 0) ranks[i - 1] = merges_.Rank(ids[i - 1], ids[i]);
  }
}

// Queues the merge of a symbol with its right neighbour, if there is one.
void Bpe::PushPair(int32_t left, Scratch* scratch) const {
  const Symbol& symbol = scratch->symbols_[static_cast<size_t>(left)];
  if (symbol.next == kNoSymbol) return;
  const uint32_t rank =
      merges_.Rank(symbol.id, scratch->symbols_[static_cast<size_t>(symbol.next)].id);
  if (rank == MergeTable::kNoRank) return;
  scratch->queue_.push_back(uint64_t{rank} << 32 | static_cast<uint32_t>(left));
}

// Merges ids_ with a heap, so that a long word takes O(n log n).
void Bpe::MergeMany(Scratch* scratch) const {
  auto& symbols = scratch->symbols_;
  auto& queue = scratch->queue_;
  const auto count = static_cast<int32_t>(scratch->ids_.size());
  symbols.clear();
  queue.clear();
  for (int32_t i = 0; i < count; ++i) {
    symbols.push_back(
        {scratch->ids_[static_cast<size_t>(i)], i - 1, i + 1 < count ? i + 1 : kNoSymbol});
  }
  for (int32_t i = 0; i < count; ++i) {
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
    Symbol& left = symbols[static_cast<size_t>(index)];
    if (left.id == kNoToken || left.next == kNoSymbol) continue;
    // Either side may have merged since.
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (merges_.Rank(left.id, right.id) != rank) continue;

    left.id = merges_.Result(rank);
    left.next = right.next;
    right.id = kNoToken;
    if (left.next != kNoSymbol) symbols[static_cast<size_t>(left.next)].previous = index;
    if (left.previous != kNoSymbol) push(left.previous);
    push(index);
  }
  scratch->ids_.clear();
  for (const Symbol& symbol : symbols) {
    if (symbol.id != kNoToken) scratch->ids_.push_back(symbol.id);
  }
}

TokenId Bpe::FindText(std::string_view text) const {
  return byte_level_ ? bytes_of_tokens_.Find(text) : vocabulary_->Find(text).value_or(kNoToken);
}

// The end of the word of `text` that starts at `begin`: no merge reaches across it.
size_t Bpe::WordEnd(std::string_view text, size_t begin) const {
  size_t end = begin;
  Unit left = NextUnit(text, &end, byte_level_);
  while (end < text.size()) {
    size_t next = end;
    const Unit right = NextUnit(text, &next, byte_level_);
    // What is spelt in other tokens than its own merges otherwise.
    if (!neighbours_.Contains(left, right) && alphabet_.Id(left) != kNoToken &&
        alphabet_.Id(right) != kNoToken) {
      break;
    }
    left = right;
    end = next;
  }
  return end;
}

void Bpe::EncodeWord(std::string_view word, Scratch* scratch, std::vector<TokenId>* out) const {
  const TokenId id = FindText(word);
  const auto* memo = id == kNoToken ? nullptr : &whole_[static_cast<size_t>(id)];
  if (memo != nullptr && memo->load(std::memory_order_relaxed) == Whole::kItself) {
    out->push_back(id);
    return;
  }
  std::vector<TokenId>& ids = scratch->ids_;
  Split(word, &ids);
  if (ids.size() <= kFew) {
    MergeFew(scratch);
  } else {
    MergeMany(scratch);
  }
  if (memo != nullptr) {
    const bool itself = ids.size() == 1 && ids[0] == id;
    whole_[static_cast<size_t>(id)].store(itself ? Whole::kItself : Whole::kOther,
                                          std::memory_order_relaxed);
  }
  out->insert(out->end(), ids.begin(), ids.end());
}

void Bpe::Encode(std::string_view piece, Scratch* scratch, std::vector<TokenId>* out) const {
  if (ignore_merges_) {
    if (const TokenId id = FindText(piece); id != kNoToken) {
      out->push_back(id);
      return;
    }
  }
  if (piece.size() <= kFew) {
    EncodeWord(piece, scratch, out);
    return;
  }
  for (size_t begin = 0; begin < piece.size();) {
    const size_t end = WordEnd(piece, begin);
    EncodeWord(piece.substr(begin, end - begin), scratch, out);
    begin = end;
  }
}

}  // namespace ferrite

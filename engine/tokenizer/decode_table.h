// What each token contributes to text: a tokenizer.json's decoder, applied to every token ahead.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/ids.h"
#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/json_cursor.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/vocabulary.h"

namespace ferrite {

// Removes up to `start` and `stop` characters `content` from the two ends of a text.
struct StripDecoder {
  std::string content;
  int64_t start = 0;
  int64_t stop = 0;
  void Apply(std::string* text) const;
};

// Turns characters `replacement` into spaces, or into nothing in the first token if
// `drop_in_first`.
struct MetaspaceDecoder {
  std::string replacement;
  bool drop_in_first = true;
  void Apply(bool first, std::string* text) const;
};

// The steps of a decoder, in the one order that streaming allows: those that see each token by
// itself, bytes, fusing, and a strip of the text's start.
struct DecoderSpec {
  std::vector<std::variant<ReplaceNormalizer, StripDecoder, MetaspaceDecoder>> token_steps;
  bool byte_fallback = false;  // tokens <0x00> to <0xFF> are bytes
  bool byte_level = false;     // tokens are spelt in the byte-level alphabet
  StripDecoder leading_strip;  // of the whole text; its stop is 0
};

// InvalidArgument if it is broken; Unimplemented names a component or an order that is not
// supported.
absl::StatusOr<DecoderSpec> ParseDecoder(const JsonCursor& component);

// Immutable and thread-safe.
class DecodeTable {
 public:
  struct Piece {
    enum class Kind : uint8_t { kAbsent, kText, kByte };
    Kind kind = Kind::kAbsent;
    bool special = false;
    unsigned char byte = 0;
    uint32_t offset = 0;
    uint32_t length = 0;
  };

  // Has an entry for every id below `size`. InvalidArgument if a regular expression finds a token
  // too hard.
  static absl::StatusOr<DecodeTable> Create(const DecoderSpec& spec, const Vocabulary& vocabulary,
                                            const AddedTokens& added, TokenId size);

  // What the token gives as the first of a text, or behind others. Null if `id` is out of range.
  const Piece* Find(TokenId id, bool first) const {
    if (id < 0 || id >= size()) return nullptr;
    return &(first && !first_pieces_.empty() ? first_pieces_ : pieces_)[static_cast<size_t>(id)];
  }
  std::string_view Text(const Piece& piece) const {
    return std::string_view(text_).substr(piece.offset, piece.length);
  }
  // Whether texts of tokens are bytes that make characters only once joined.
  bool byte_level() const { return byte_level_; }
  size_t longest() const { return longest_; }
  TokenId size() const { return static_cast<TokenId>(pieces_.size()); }
  const StripDecoder& leading_strip() const { return leading_strip_; }

 private:
  DecodeTable() = default;
  absl::StatusOr<Piece> MakePiece(const DecoderSpec& spec, std::string text, bool first);

  StripDecoder leading_strip_;
  bool byte_level_ = false;
  size_t longest_ = 0;  // bytes that a token gives
  std::string text_;
  std::vector<Piece> pieces_;
  std::vector<Piece> first_pieces_;  // empty if being first makes no difference
};

}  // namespace ferrite

// Byte-pair encoding: text to ids by merging neighbours in the order of the merge list.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/ids.h"
#include "engine/tokenizer/alphabet.h"
#include "engine/tokenizer/json_cursor.h"
#include "engine/tokenizer/merge_table.h"
#include "engine/tokenizer/token_index.h"
#include "engine/tokenizer/vocabulary.h"

namespace ferrite {

// Thread-safe, and immutable but for a memo that changes no result; must not outlive its
// vocabulary.
class Bpe {
 public:
  // Reads a tokenizer.json's model, whose pieces are `vocabulary`. With `byte_level`, texts are
  // taken byte by byte, as if spelt in the byte-level alphabet (byte_alphabet.h). Unimplemented
  // names an option that is not supported.
  static absl::StatusOr<Bpe> Parse(const JsonCursor& model, const Vocabulary& vocabulary,
                                   bool byte_level);

  // Buffers that calls share, so that short pieces cost no allocation.
  class Scratch;

  // Appends the ids of `piece` (valid UTF-8 unless byte_level, below 2 GiB) to `out`. O(n log n).
  void Encode(std::string_view piece, Scratch* scratch, std::vector<TokenId>* out) const;

 private:
  struct Symbol {
    TokenId id;  // kNoToken once merged into its left neighbour
    int32_t previous;
    int32_t next;
  };
  // What merging makes of a token's own text.
  enum class Whole : uint8_t { kUnknown, kItself, kOther };

  explicit Bpe(const Vocabulary& vocabulary) : vocabulary_(&vocabulary) {}
  absl::Status ParseOptions(const JsonCursor& model);
  absl::Status ParseMerges(const JsonCursor& merges);
  absl::Status IndexUnits(const JsonCursor& model);
  TokenId FindText(std::string_view text) const;
  size_t WordEnd(std::string_view text, size_t begin) const;
  void EncodeWord(std::string_view word, Scratch* scratch, std::vector<TokenId>* out) const;
  bool AppendBytes(std::string_view character, std::vector<TokenId>* ids) const;
  void Split(std::string_view word, std::vector<TokenId>* ids) const;
  void MergeFew(Scratch* scratch) const;
  void MergeMany(Scratch* scratch) const;
  void PushPair(int32_t left, Scratch* scratch) const;

  const Vocabulary* vocabulary_;
  Alphabet alphabet_;
  Neighbours neighbours_;
  TokenIndex bytes_of_tokens_;         // if byte_level: tokens by the bytes they stand for
  std::array<TokenId, 256> byte_ids_;  // of <0x00> to <0xFF>; kNoToken if missing
  TokenId unk_id_ = kNoToken;
  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool fuse_unk_ = false;
  bool ignore_merges_ = false;
  MergeTable merges_;
  // Found out when first asked for. Any thread that looks finds the same.
  std::unique_ptr<std::atomic<Whole>[]> whole_;
};

class Bpe::Scratch {
 private:
  friend class Bpe;
  std::vector<TokenId> ids_;  // a word's units, then its tokens
  std::vector<uint32_t> ranks_;
  std::vector<Symbol> symbols_;
  // A heap of possible merges, the next one on top: rank << 32 | index of the left symbol.
  std::vector<uint64_t> queue_;
};

}  // namespace ferrite

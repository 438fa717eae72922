// Byte-pair encoding: text to ids by merging neighbours in the order of the merge list.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/ids.h"
#include "engine/tokenizer/json_cursor.h"
#include "engine/tokenizer/merge_table.h"
#include "engine/tokenizer/vocabulary.h"

namespace ferrite {

// Immutable and thread-safe; must not outlive its vocabulary.
class Bpe {
 public:
  // Reads a tokenizer.json's model, whose pieces are `vocabulary`. Unimplemented names an option
  // that is not supported.
  static absl::StatusOr<Bpe> Parse(const JsonCursor& model, const Vocabulary& vocabulary);

  // Buffers that calls share, so that short pieces cost no allocation.
  class Scratch;

  // Appends the ids of `piece` (valid UTF-8, below 4 Gi characters) to `out`. O(n log n).
  void Encode(std::string_view piece, Scratch* scratch, std::vector<TokenId>* out) const;

 private:
  struct Symbol {
    TokenId id;  // kNoToken once merged into its left neighbour
    int32_t previous;
    int32_t next;
  };

  explicit Bpe(const Vocabulary& vocabulary) : vocabulary_(&vocabulary) {}
  absl::Status ParseOptions(const JsonCursor& model);
  absl::Status ParseMerges(const JsonCursor& merges);
  void IndexCharacters();
  TokenId CharacterId(std::string_view character) const;
  bool AppendBytes(std::string_view character, std::vector<Symbol>* symbols) const;
  void Split(std::string_view piece, std::vector<Symbol>* symbols) const;
  void Merge(Scratch* scratch) const;
  void PushPair(int32_t left, Scratch* scratch) const;

  const Vocabulary* vocabulary_;
  std::array<TokenId, 128> ascii_ids_;
  std::unordered_map<char32_t, TokenId> character_ids_;  // beyond ASCII
  std::array<TokenId, 256> byte_ids_;                    // of <0x00> to <0xFF>; kNoToken if missing
  TokenId unk_id_;
  bool byte_fallback_ = false;
  bool fuse_unk_ = false;
  bool ignore_merges_ = false;
  MergeTable merges_;
};

class Bpe::Scratch {
 private:
  friend class Bpe;
  std::vector<Symbol> symbols_;
  // A heap of possible merges, the next one on top: rank << 32 | index of the left symbol.
  std::vector<uint64_t> queue_;
};

}  // namespace ferrite

// Turns a growing list of token ids into text, piece by piece.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "engine/ids.h"
#include "engine/tokenizer/tokenizer.h"

namespace ferrite {

// The pieces joined are exactly Tokenizer::Decode of the ids joined. Bytes that may still become
// (or spoil) a character are held back, so no piece ever ends inside a UTF-8 character. Appending
// allocates nothing once `out` has its capacity. Thread-compatible; must not outlive `tokenizer`.
class IncrementalDecoder {
 public:
  IncrementalDecoder(const Tokenizer& tokenizer, bool skip_special_tokens);

  // Appends to `out` the text that `id` settles. Ids out of range (a vocabulary padded beyond the
  // tokenizer's) have no text.
  void Append(TokenId id, std::string* out);

  // Takes the ids of a prompt: the text that follows is what comes after them. Text that the
  // prompt's end had held back goes with what follows.
  void Prime(std::span<const TokenId> prompt);

  // Appends to `out` what was held back, with U+FFFD for bytes that did not become characters. The
  // decoder is then at the start again.
  void Finish(std::string* out);

 private:
  void EmitBytes(std::string* out);
  void EmitCharacters(std::string* out);
  void Emit(std::string_view text, std::string* out);

  const DecodeTable* table_;
  bool skip_special_tokens_;
  int64_t strip_left_;   // how many characters the start of the text may still lose
  bool first_ = true;    // no token has had text yet
  std::string held_;     // a run of byte tokens that has not ended, or an unfinished character
  std::string valid_;    // what held_ has yielded
  std::string scratch_;  // text of a prompt, which nobody wants
};

}  // namespace ferrite

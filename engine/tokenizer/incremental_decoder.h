// Turns a growing list of token ids into text, piece by piece.
#pragma once

#include <span>
#include <string>

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
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  bool at_start_ = true;
  std::string held_;
  std::string scratch_;
};

}  // namespace ferrite

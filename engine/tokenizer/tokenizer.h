// Text to token ids and back, as a Hugging Face tokenizer.json says.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/ids.h"

namespace ferrite {

class DecodeTable;

// Immutable and thread-safe after Create. The pipeline is added tokens -> normalizer ->
// pre-tokenizer -> BPE -> post-processor one way, and the decoder the other way.
class Tokenizer {
 public:
  // Builds from the text of a tokenizer.json. InvalidArgument says what is broken and where; a
  // component that is not supported is Unimplemented, naming it.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(std::string_view json);

  // Reads `directory`/tokenizer.json. NotFound if there is none.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& directory);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // `text` must be valid UTF-8 (InvalidArgument with the offset of the first bad byte otherwise).
  // add_special_tokens applies the post-processor's template (a leading BOS, for example).
  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text, bool add_special_tokens) const;

  // The text of `ids`, with U+FFFD where bytes are no valid UTF-8. InvalidArgument names an id out
  // of range and its index.
  absl::StatusOr<std::string> Decode(std::span<const TokenId> ids, bool skip_special_tokens) const;

  // The token as it stands in the vocabulary ("▁the"); empty if the id is not in it.
  std::string_view IdToToken(TokenId id) const;
  // What the token adds to a text that it is not the first of: any bytes, which need not be whole
  // characters. A special token gives its name; an id that is not in the vocabulary, nothing.
  std::string TokenBytes(TokenId id) const;
  std::optional<TokenId> TokenToId(std::string_view token) const;
  bool IsSpecial(TokenId id) const;
  // What Encode puts before and behind a text with add_special_tokens.
  const std::vector<TokenId>& special_prefix() const;
  const std::vector<TokenId>& special_suffix() const;

  // One more than the largest id.
  int32_t vocab_size() const;

 private:
  friend class IncrementalDecoder;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  const DecodeTable& decode_table() const;

  std::unique_ptr<const Impl> impl_;
};

}  // namespace ferrite

// Cuts text into pieces that merge by themselves: what a tokenizer.json calls its pre-tokenizer.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tokenizer/json_cursor.h"
#include "engine/tokenizer/metaspace.h"
#include "engine/tokenizer/regex.h"

namespace ferrite {

// What becomes of the matches of a Split.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// Cuts every piece at the matches of an expression (between them, if inverted).
struct SplitStep {
  Regex regex;
  SplitBehavior behavior;
  bool invert;
};

// Rewrites every piece as Metaspace does: spaces become `replacement`, and a piece that does not
// start with it gets one in front, if asked for.
struct MetaspaceStep {
  std::string replacement;
  MetaspacePrepend prepend;
};

// Puts a space before every piece that does not start with one.
struct PrefixSpaceStep {};

// Rewrites every piece in the alphabet that stands for bytes.
struct ByteCharactersStep {};

// Immutable and thread-safe.
class PreTokenizer {
 public:
  // The pieces of a text, and buffers, for the calls of one thread.
  class Scratch;

  // `component` is null if the file has none, which leaves text whole. `keeps_start` says whether
  // the normalizer leaves the start of text in place. Unimplemented names what is not supported.
  static absl::StatusOr<PreTokenizer> Parse(const std::optional<JsonCursor>& component,
                                            bool keeps_start);

  // Cuts `text` (valid UTF-8), which must outlive the scratch's use of it. `at_start` says whether
  // it is the start of what the caller of Encode gave. InvalidArgument if an expression finds the
  // text too hard.
  absl::Status Split(std::string_view text, bool at_start, Scratch* scratch) const;

  // Whether pieces are to be encoded by their bytes, in the byte-level alphabet.
  bool byte_level() const { return byte_level_; }

 private:
  using Step = std::variant<SplitStep, MetaspaceStep, PrefixSpaceStep, ByteCharactersStep>;
  absl::Status AddStep(const TypedJson& part, bool keeps_start);
  absl::Status AddMetaspace(const JsonCursor& body, bool keeps_start);
  absl::Status AddByteLevel(const JsonCursor& body);
  absl::Status AddSplit(const JsonCursor& body);
  absl::Status AddOwnSplit(std::string_view pcre2, SplitBehavior behavior, bool invert);

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

class PreTokenizer::Scratch {
 public:
  size_t size() const { return pieces_.size(); }
  // Not empty.
  std::string_view piece(size_t i) const {
    return text_.substr(pieces_[i].begin, pieces_[i].end - pieces_[i].begin);
  }

 private:
  friend class PreTokenizer;
  void Cut(const SplitStep& step, std::string_view text, size_t offset);
  template <typename Rewrite>
  void RewritePieces(const Rewrite& rewrite);

  std::string_view text_;                 // what the pieces are ranges of
  std::array<std::string, 2> rewritten_;  // by the last step that rewrites, and the one before
  size_t buffer_ = 0;                     // which of the two is the last
  std::vector<TextRange> pieces_;
  std::vector<TextRange> next_;
  std::vector<TextRange> matches_;
  Regex::Scratch regex_;
};

}  // namespace ferrite

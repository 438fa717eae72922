// A regular expression as a tokenizer uses one: all its matches in a text, one after the other.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct pcre2_real_code_8;

namespace ferrite {

// A stretch of bytes: [begin, end).
struct TextRange {
  size_t begin;
  size_t end;
};

// Immutable and thread-safe, compiled to machine code by PCRE2 where it can. Patterns come from
// files and texts from clients: neither can make it abort, recurse without bound or match forever.
class Regex {
 public:
  // Buffers for the calls of one thread.
  class Scratch;

  // A pattern in Oniguruma's syntax (see TranslateRegex). InvalidArgument if it does not compile,
  // Unimplemented names what is not supported.
  static absl::StatusOr<Regex> FromOniguruma(std::string_view pattern);
  // A pattern of our own in PCRE2's syntax. Without `stand_ins` it sees newer characters
  // (newer_characters.h) as they are, and as PCRE2 knows them.
  static absl::StatusOr<Regex> FromPcre2(std::string_view pattern, bool stand_ins = true);
  // Matches `text` and nothing else; empty text matches everywhere.
  static absl::StatusOr<Regex> Literal(std::string_view text);

  // Replaces `matches` by those in `text` (valid UTF-8), from the left, none overlapping. As in the
  // reference, an empty match right behind another match does not count. InvalidArgument if
  // matching takes more steps or memory than it may.
  absl::Status FindAll(std::string_view text, Scratch* scratch,
                       std::vector<TextRange>* matches) const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  static absl::StatusOr<Regex> Compile(std::string_view pattern, uint32_t options);
  int Match(std::string_view text, size_t start, Scratch* scratch) const;
  absl::StatusOr<bool> FindNext(std::string_view text, size_t start, Scratch* scratch) const;

  std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
  std::string pattern_;  // as the file has it, for messages
  bool jit_ = false;
  bool stand_ins_ = true;
};

class Regex::Scratch {
 public:
  Scratch();
  ~Scratch();

 private:
  friend class Regex;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ferrite

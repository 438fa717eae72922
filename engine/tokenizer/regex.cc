#include "engine/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"
#include "engine/tokenizer/newer_characters.h"
#include "engine/tokenizer/regex_syntax.h"
#include "engine/tokenizer/utf8.h"

namespace ferrite {
namespace {

// Steps of one match. A megabyte of one letter takes none with the patterns that models have.
constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kHeapLimitKib = 64 * 1024;
// PCRE2's code runs on 32 KiB of the thread's stack; a match that needs more gets this much.
constexpr size_t kJitStackStart = 64 * 1024;
constexpr size_t kJitStackLimit = 16 * 1024 * 1024;

template <auto kFree>
struct Freer {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using CompileContext = std::unique_ptr<pcre2_compile_context, Freer<pcre2_compile_context_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Freer<pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Freer<pcre2_match_context_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Freer<pcre2_jit_stack_free>>;

std::string ErrorText(int code) {
  PCRE2_UCHAR text[256];
  const int length = pcre2_get_error_message(code, text, sizeof(text));
  return length < 0 ? absl::StrCat("error ", code)
                    : std::string(reinterpret_cast<const char*>(text), static_cast<size_t>(length));
}

PCRE2_SPTR Pointer(std::string_view text) {
  // PCRE2 takes no null pointer, not even for empty text.
  return reinterpret_cast<PCRE2_SPTR>(text.data() == nullptr ? "" : text.data());
}

}  // namespace

void Regex::FreeCode::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

struct Regex::Scratch::State {
  // Any pattern's match data serves any other, since only the whole match is asked for.
  MatchData match{pcre2_match_data_create(1, nullptr)};
  MatchContext context{pcre2_match_context_create(nullptr)};
  JitStack stack;    // once a match has needed more than PCRE2's code has of its own
  std::string text;  // the text with newer characters replaced
};

Regex::Scratch::Scratch() : state_(std::make_unique<State>()) {
  if (state_->context == nullptr) return;
  pcre2_set_match_limit(state_->context.get(), kMatchLimit);
  pcre2_set_heap_limit(state_->context.get(), kHeapLimitKib);
}

Regex::Scratch::~Scratch() = default;

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern, uint32_t options) {
  const CompileContext context(pcre2_compile_context_create(nullptr));
  if (context == nullptr) return absl::ResourceExhaustedError("no memory to compile a pattern");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  Regex regex;
  regex.code_.reset(pcre2_compile(Pointer(pattern), pattern.size(), options | PCRE2_UTF, &error,
                                  &offset, context.get()));
  if (regex.code_ == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("regular expression \"", absl::string_view(pattern.data(), pattern.size()),
                     "\" is broken at offset ", offset, ": ", ErrorText(error)));
  }
  regex.pattern_ = std::string(pattern);
  // Where the machine does not allow it, the interpreter gives the same answers.
  regex.jit_ = pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE) == 0;
  return regex;
}

absl::StatusOr<Regex> Regex::FromPcre2(std::string_view pattern, bool stand_ins) {
  ASSIGN_OR_RETURN(Regex regex,
                   Compile(pattern, PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C));
  regex.stand_ins_ = stand_ins;
  return regex;
}

absl::StatusOr<Regex> Regex::FromOniguruma(std::string_view pattern) {
  ASSIGN_OR_RETURN(const std::string translated, TranslateRegex(pattern));
  return FromPcre2(translated);
}

absl::StatusOr<Regex> Regex::Literal(std::string_view text) {
  ASSIGN_OR_RETURN(Regex regex, Compile(text, PCRE2_LITERAL));
  regex.stand_ins_ = false;
  return regex;
}

absl::Status Regex::FindAll(std::string_view text, Scratch* scratch,
                            std::vector<TextRange>* matches) const {
  matches->clear();
  Scratch::State& state = *scratch->state_;
  if (state.match == nullptr || state.context == nullptr) {
    return absl::ResourceExhaustedError("no memory to match a regular expression");
  }
  const std::string_view subject = stand_ins_ ? ReplaceNewerCharacters(text, &state.text) : text;
  const PCRE2_SIZE* found = pcre2_get_ovector_pointer(state.match.get());
  for (size_t start = 0; start <= subject.size();) {
    ASSIGN_OR_RETURN(const bool matched, FindNext(subject, start, scratch));
    if (!matched) break;
    const TextRange match{found[0], found[1]};
    // \K, which could let a match begin behind its end, is not in the syntax.
    const bool empty = match.begin == match.end;
    if (empty && !matches->empty() && matches->back().end == match.end) {
      start += start < subject.size() ? Utf8Length(subject[start]) : 1;
      continue;
    }
    matches->push_back(match);
    start = match.end;
  }
  return absl::OkStatus();
}

int Regex::Match(std::string_view text, size_t start, Scratch* scratch) const {
  const Scratch::State& state = *scratch->state_;
  return jit_ ? pcre2_jit_match(code_.get(), Pointer(text), text.size(), start, 0,
                                state.match.get(), state.context.get())
              : pcre2_match(code_.get(), Pointer(text), text.size(), start, PCRE2_NO_UTF_CHECK,
                            state.match.get(), state.context.get());
}

// Whether there is a match at or behind `start`: it is then in the scratch's match data.
absl::StatusOr<bool> Regex::FindNext(std::string_view text, size_t start, Scratch* scratch) const {
  int result = Match(text, start, scratch);
  Scratch::State& state = *scratch->state_;
  if (result == PCRE2_ERROR_JIT_STACKLIMIT && state.stack == nullptr) {
    state.stack.reset(pcre2_jit_stack_create(kJitStackStart, kJitStackLimit, nullptr));
    pcre2_jit_stack_assign(state.context.get(), nullptr, state.stack.get());
    result = Match(text, start, scratch);
  }
  if (result >= 0) return true;
  if (result == PCRE2_ERROR_NOMATCH) return false;
  return absl::InvalidArgumentError(absl::StrCat("text cannot be split at byte offset ", start,
                                                 ": regular expression \"", pattern_,
                                                 "\": ", ErrorText(result)));
}

}  // namespace ferrite

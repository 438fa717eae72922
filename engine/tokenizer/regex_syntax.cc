#include "engine/tokenizer/regex_syntax.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/status_macros.h"
#include "engine/tokenizer/newer_characters.h"
#include "engine/tokenizer/utf8.h"

namespace ferrite {
namespace {

constexpr size_t kMaxGroupDepth = 100;
constexpr char32_t kNone = 0xFFFFFFFF;

// What \w is in Oniguruma: PCRE2's is narrower. Outside a class it counts Latin-1's superscripts
// and fractions, inside it does not.
constexpr std::string_view kWordInClass = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
constexpr std::string_view kWord = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\xB2\\xB3\\xB9\\xBC-\\xBE";
constexpr std::string_view kHexDigits = "0-9A-Fa-f";

constexpr std::array<std::string_view, 36> kCategories = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",  "Nd",
    "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S",  "Sm",
    "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Co", "Cn"};
// Those whose newer characters have a stand-in of the same script, or that have no newer ones.
constexpr std::array<std::string_view, 4> kScripts = {"Han", "Hiragana", "Katakana", "Hangul"};

// Pairs that are one character when case is ignored (sharp s and the ligatures) in Oniguruma only.
constexpr std::array<std::string_view, 5> kFoldedPairs = {"ss", "ff", "fi", "fl", "st"};

bool IsAsciiLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool IsAsciiDigit(char c) { return c >= '0' && c <= '9'; }
char AsciiLower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

absl::Status Unsupported(std::string_view what) {
  return absl::UnimplementedError(absl::StrCat(
      "regular expression: ", absl::string_view(what.data(), what.size()), " is not supported"));
}

class Translator {
 public:
  explicit Translator(std::string_view pattern) : rest_(pattern) {}

  absl::StatusOr<std::string> Run() {
    groups_.push_back({});
    while (!rest_.empty()) {
      RETURN_IF_ERROR(Next());
    }
    return std::move(out_);
  }

 private:
  struct Group {
    size_t start = 0;  // of the group in out_
    size_t body = 0;   // of what is in its parentheses
    bool caseless = false;
  };

  // One character of a class, or a literal, or something that stands for several.
  struct Escape {
    char32_t character;   // kNone if it is not a single one
    std::string text;     // PCRE2's spelling
    bool is_set = false;  // text is what goes between the brackets of a class
  };

  bool Take(std::string_view prefix) {
    if (!rest_.starts_with(prefix)) return false;
    rest_.remove_prefix(prefix.size());
    return true;
  }

  std::string_view TakeCharacter() {
    const std::string_view character = rest_.substr(0, Utf8Length(rest_[0]));
    rest_.remove_prefix(character.size());
    return character;
  }

  void Atom(std::string_view text) {
    atom_ = out_.size();
    out_.append(text);
  }

  absl::Status Next() {
    const char c = rest_[0];
    if (c == '*' || c == '+' || c == '?' || c == '{') return Quantifier();
    if (c != '\\' && !IsAsciiLetter(c)) last_letter_ = 0;
    switch (c) {
      case '\\':
        last_letter_ = 0;
        return OutsideEscape();
      case '[':
        return Class();
      case '(':
        return Open();
      case ')':
        return Close();
      case '|':
      case '^':
      case '$':
      case '.':
        Atom(TakeCharacter());
        return absl::OkStatus();
      default:
        break;
    }
    const std::string_view character = TakeCharacter();
    return Literal(FirstCodePoint(character), character);
  }

  absl::Status CheckRange(char32_t first, char32_t last) const {
    if (last >= 0x80 && groups_.back().caseless) {
      return Unsupported("ignoring the case of other than ASCII");
    }
    if (DividesNewerCharacters(first, last)) {
      return Unsupported(absl::StrFormat("a range such as U+%04X to U+%04X",
                                         static_cast<uint32_t>(first),
                                         static_cast<uint32_t>(last)));
    }
    return absl::OkStatus();
  }

  absl::Status Literal(char32_t code_point, std::string_view text) {
    RETURN_IF_ERROR(CheckRange(code_point, code_point));
    const char letter = code_point < 0x80 ? AsciiLower(static_cast<char>(code_point)) : '\0';
    if (groups_.back().caseless && IsAsciiLetter(letter)) {
      const char pair[] = {last_letter_, letter};
      if (std::find(kFoldedPairs.begin(), kFoldedPairs.end(), std::string_view(pair, 2)) !=
          kFoldedPairs.end()) {
        return Unsupported(absl::StrCat("\"", absl::string_view(pair, 2), "\" ignoring case"));
      }
    }
    last_letter_ = letter;
    Atom(text);
    return absl::OkStatus();
  }

  absl::Status OutsideEscape() {
    const size_t begin = out_.size();
    if (rest_.size() > 1) {
      switch (rest_[1]) {
        case 'A':
        case 'z':
        case 'Z':
          Atom(rest_.substr(0, 2));
          rest_.remove_prefix(2);
          return absl::OkStatus();
        case 'b':
        case 'B':
          Boundary(rest_[1] == 'b');
          rest_.remove_prefix(2);
          return absl::OkStatus();
        case 'w':
        case 'W':
        case 'H':
          atom_ = begin;
          out_.append(rest_[1] == 'w' ? "[" : "[^");
          out_.append(rest_[1] == 'H' ? kHexDigits : kWord).append("]");
          rest_.remove_prefix(2);
          return absl::OkStatus();
        default:
          break;
      }
    }
    ASSIGN_OR_RETURN(const Escape escape, ParseEscape());
    if (escape.character != kNone) return Literal(escape.character, escape.text);
    Atom(escape.is_set ? absl::StrCat("[", escape.text, "]") : escape.text);
    return absl::OkStatus();
  }

  void Boundary(bool wanted) {
    const std::string word(kWord);
    const auto [left, right] = wanted ? std::pair("!", "=") : std::pair("=", "!");
    Atom(absl::StrCat("(?:(?<=[", word, "])(?", left, "[", word, "])|(?<![", word, "])(?", right,
                      "[", word, "]))"));
  }

  // What a backslash begins, inside a class or outside.
  absl::StatusOr<Escape> ParseEscape() {
    rest_.remove_prefix(1);
    if (rest_.empty()) return Unsupported("a backslash at the end");
    const std::string_view character = TakeCharacter();
    const char c = character[0];
    const auto control = [](char32_t code) {
      return Escape{code, absl::StrFormat("\\x%02X", static_cast<uint32_t>(code)), false};
    };
    switch (c) {
      case 't':
        return control('\t');
      case 'n':
        return control('\n');
      case 'v':
        return control('\v');
      case 'f':
        return control('\f');
      case 'r':
        return control('\r');
      case 'a':
        return control('\a');
      case 'e':
        return control(0x1B);
      case 's':
      case 'S':
      case 'd':
      case 'D':
        return Escape{kNone, std::string{'\\', c}, false};
      case 'w':
        return Escape{kNone, std::string(kWordInClass), true};
      case 'h':
        return Escape{kNone, std::string(kHexDigits), true};
      case 'p':
      case 'P':
        return Property(c == 'P');
      case 'x':
      case 'u':
        return CodePoint(c);
      default:
        break;
    }
    if (IsAsciiLetter(c) || IsAsciiDigit(c)) {
      return Unsupported(absl::StrCat("\\", absl::string_view(&c, 1)));
    }
    const bool ascii = character.size() == 1;
    return Escape{
        FirstCodePoint(character),
        absl::StrCat(ascii ? "\\" : "", absl::string_view(character.data(), character.size())),
        false};
  }

  absl::StatusOr<Escape> Property(bool negated) {
    const size_t close = rest_.find('}');
    if (!rest_.starts_with('{') || close == std::string_view::npos) {
      return Unsupported("\\p without {...}");
    }
    std::string_view name = rest_.substr(1, close - 1);
    rest_.remove_prefix(close + 1);
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    const absl::string_view printed(name.data(), name.size());
    const bool is_category =
        std::find(kCategories.begin(), kCategories.end(), name) != kCategories.end();
    if (!is_category && std::find(kScripts.begin(), kScripts.end(), name) == kScripts.end()) {
      return Unsupported(absl::StrCat("\\p{", printed, "}"));
    }
    if (groups_.back().caseless && (name == "Lu" || name == "Ll" || name == "Lt")) {
      return Unsupported(absl::StrCat("\\p{", printed, "} ignoring case"));
    }
    return Escape{kNone,
                  absl::StrCat(negated ? "\\P{" : "\\p{", is_category ? "" : "sc:", printed, "}"),
                  false};
  }

  // \xHH (ASCII only: beyond, Oniguruma means a byte), \x{H...} or \uHHHH.
  absl::StatusOr<Escape> CodePoint(char kind) {
    std::string_view digits;
    size_t taken = 0;
    const bool braced = kind == 'x' && rest_.starts_with('{');
    if (braced) {
      const size_t close = rest_.find('}');
      if (close == std::string_view::npos) return Unsupported("\\x{ without }");
      digits = rest_.substr(1, close - 1);
      taken = close + 1;
    } else {
      digits = rest_.substr(0, kind == 'x' ? 2 : 4);
      taken = digits.size();
    }
    uint32_t value = 0;
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    const bool complete = braced ? !digits.empty() : taken == (kind == 'x' ? 2U : 4U);
    const bool valid = error == std::errc() && end == digits.data() + digits.size() && complete &&
                       value <= 0x10FFFF && (value < 0xD800 || value > 0xDFFF);
    if (!valid || (kind == 'x' && !braced && value >= 0x80)) {
      return Unsupported(absl::StrCat("\\", absl::string_view(&kind, 1),
                                      absl::string_view(digits.data(), digits.size())));
    }
    rest_.remove_prefix(taken);
    return Escape{value, absl::StrFormat("\\x{%X}", value), false};
  }

  absl::Status Class() {
    rest_.remove_prefix(1);
    Atom(Take("^") ? "[^" : "[");
    if (rest_.starts_with(']')) return Unsupported("a class that starts with ]");
    while (!Take("]")) {
      ASSIGN_OR_RETURN(const char32_t first, ClassItem());
      if (first == kNone) continue;
      char32_t last = first;
      if (rest_.size() > 1 && rest_[0] == '-' && rest_[1] != ']') {
        rest_.remove_prefix(1);
        out_.push_back('-');
        ASSIGN_OR_RETURN(last, ClassItem());
        if (last == kNone) return Unsupported("a range to a class");
      }
      RETURN_IF_ERROR(CheckRange(first, last));
    }
    out_.push_back(']');
    return absl::OkStatus();
  }

  // Appends one member of a class. Returns it, or kNone if it is not a single character.
  absl::StatusOr<char32_t> ClassItem() {
    if (rest_.empty()) return Unsupported("a class without its ]");
    if (rest_[0] == '[') return Unsupported("a class inside a class");
    if (rest_.starts_with("&&")) return Unsupported("&& in a class");
    if (rest_[0] == '\\') {
      ASSIGN_OR_RETURN(const Escape escape, ParseEscape());
      out_.append(escape.text);
      return escape.character;
    }
    const char32_t code_point = FirstCodePoint(rest_);
    const std::string_view character = TakeCharacter();
    // A hyphen that makes no range, and what PCRE2 might see something in.
    if (character == "-" || character == "^") out_.push_back('\\');
    out_.append(character);
    return code_point;
  }

  absl::Status Open() {
    if (groups_.size() >= kMaxGroupDepth) return Unsupported("nesting this deep");
    Group group{out_.size(), 0, groups_.back().caseless};
    const bool at_start = out_.size() == groups_.back().body;
    rest_.remove_prefix(1);
    if (!rest_.starts_with('?')) {
      out_.append("(?:");
    } else if (Take("?:")) {
      out_.append("(?:");
    } else if (Take("?=")) {
      out_.append("(?=");
    } else if (Take("?!")) {
      out_.append("(?!");
    } else if (Take("?<=")) {
      out_.append("(?<=");
    } else if (Take("?<!")) {
      out_.append("(?<!");
    } else if (Take("?>")) {
      out_.append("(?>");
    } else if (Take("?i:")) {
      out_.append("(?i:");
      group.caseless = true;
    } else if (Take("?-i:")) {
      out_.append("(?-i:");
      group.caseless = false;
    } else if (Take("?m:")) {
      out_.append("(?s:");  // Ruby's m lets a dot match newlines
    } else if (at_start && Take("?i)")) {
      // In the middle of an alternative Ruby lets it reach over the bars that follow.
      out_.append("(?i)");
      groups_.back().caseless = true;
      groups_.back().body = out_.size();
      return absl::OkStatus();
    } else {
      return Unsupported(
          absl::StrCat("the group \"(",
                       absl::string_view(rest_.data(), std::min<size_t>(rest_.size(), 4)), "\""));
    }
    group.body = out_.size();
    groups_.push_back(group);
    return absl::OkStatus();
  }

  absl::Status Close() {
    if (groups_.size() == 1) return Unsupported("a ) without its (");
    rest_.remove_prefix(1);
    out_.push_back(')');
    atom_ = groups_.back().start;
    groups_.pop_back();
    return absl::OkStatus();
  }

  // Puts what the last quantifier applies to, and that quantifier, into a group of its own.
  void WrapAtom() {
    out_.insert(atom_, "(?:");
    out_.push_back(')');
  }

  absl::Status Quantifier() {
    if (rest_[0] == '{') return Interval();
    out_.append(TakeCharacter());
    if (rest_.starts_with('?') || rest_.starts_with('+')) out_.append(TakeCharacter());
    return NoMoreQuantifiers();
  }

  absl::Status NoMoreQuantifiers() const {
    const bool interval =
        rest_.size() > 1 && rest_[0] == '{' && (IsAsciiDigit(rest_[1]) || rest_[1] == ',');
    if (interval || rest_.starts_with('*') || rest_.starts_with('+') || rest_.starts_with('?')) {
      return Unsupported("a quantifier of a quantifier");
    }
    return absl::OkStatus();
  }

  absl::Status Interval() {
    const size_t close = rest_.find('}');
    const std::string_view body =
        close == std::string_view::npos ? std::string_view() : rest_.substr(1, close - 1);
    const size_t comma = body.find(',');
    const std::string_view low = body.substr(0, comma);
    const std::string_view high =
        comma == std::string_view::npos ? std::string_view() : body.substr(comma + 1);
    const auto is_number = [](std::string_view text) {
      return std::all_of(text.begin(), text.end(), IsAsciiDigit);
    };
    if (!is_number(low) || !is_number(high) || (low.empty() && high.empty())) {
      rest_.remove_prefix(1);
      return Literal('{', "\\{");
    }
    rest_.remove_prefix(close + 1);
    absl::StrAppend(&out_, "{", low.empty() ? "0" : absl::string_view(low.data(), low.size()),
                    absl::string_view(body.data(), body.size()).substr(low.size()), "}");
    // Ruby has no possessive intervals, and no lazy ones of a fixed count: both quantify again.
    const bool fixed = comma == std::string_view::npos;
    if (rest_.starts_with('+') || (fixed && rest_.starts_with('?'))) {
      WrapAtom();
      out_.append(TakeCharacter());
    } else if (rest_.starts_with('?')) {
      out_.append(TakeCharacter());
    }
    return NoMoreQuantifiers();
  }

  std::string_view rest_;
  std::string out_;
  std::vector<Group> groups_;
  size_t atom_ = 0;       // where what a quantifier applies to starts in out_
  char last_letter_ = 0;  // the literal before this one, lower case; 0 if there is none
};

}  // namespace

absl::StatusOr<std::string> TranslateRegex(std::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace ferrite

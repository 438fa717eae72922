#include "engine/tokenizer/normal_form.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <string_view>

#include "engine/tokenizer/utf8.h"

namespace ferrite {
namespace {

struct CodePointRange {
  char32_t first;
  char32_t last;
};

// What has a combining class or a decomposition but was assigned after Unicode 9, up to Unicode 17.
// Some of the ranges take in characters, or gaps, that are inert anyway. Sorted.
constexpr CodePointRange kUnknown[] = {
    {0x07FD, 0x07FD},   {0x0897, 0x089F},   {0x08CA, 0x08D3},   {0x09FE, 0x09FE},
    {0x0C3C, 0x0C3C},   {0x0D3B, 0x0D3C},   {0x0EBA, 0x0EBA},   {0x1715, 0x1715},
    {0x1ABF, 0x1AFF},   {0x1DF6, 0x1DFA},   {0x32FF, 0x32FF},   {0xA7F1, 0xA7F4},
    {0xA82C, 0xA82C},   {0xAB69, 0xAB69},   {0x105C0, 0x105FF}, {0x10780, 0x107BF},
    {0x10D24, 0x10D27}, {0x10D69, 0x10D6D}, {0x10EAB, 0x10EAC}, {0x10EFA, 0x10EFF},
    {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B},
    {0x11380, 0x113FF}, {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11943},
    {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99},
    {0x11D42, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16100, 0x1613F},
    {0x16D40, 0x16D7F}, {0x16FF0, 0x16FF1}, {0x1CC00, 0x1CCFF}, {0x1E030, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF},
    {0x1E5D0, 0x1E5FF}, {0x1E6C0, 0x1E6FF}, {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9}};

bool IsUnknown(char32_t code_point) {
  const auto* range =
      std::partition_point(std::begin(kUnknown), std::end(kUnknown),
                           [&](const CodePointRange& r) { return r.last < code_point; });
  return range != std::end(kUnknown) && range->first <= code_point;
}

// The table covers the first two planes; of what follows, only CJK's compatibility ideographs are
// not inert.
constexpr char32_t kTableSize = 0x20000;
constexpr CodePointRange kCompatibilityIdeographs = {0x2F800, 0x2FA1D};

// The longest decomposition of a character, U+FDFA's, has 18.
using Decomposition = std::array<utf8proc_int32_t, 32>;

size_t Decompose(char32_t code_point, int options, Decomposition* out) {
  int last_boundary = 0;
  const auto count =
      utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code_point), out->data(),
                              static_cast<utf8proc_ssize_t>(out->size()),
                              static_cast<utf8proc_option_t>(options), &last_boundary);
  return static_cast<size_t>(std::max<utf8proc_ssize_t>(count, 0));
}

int CombiningClass(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

std::vector<bool> MakeInertTable(int options) {
  const bool composes = (options & UTF8PROC_COMPOSE) != 0;
  const int decomposing = (options & ~UTF8PROC_COMPOSE) | UTF8PROC_DECOMPOSE;
  std::vector<bool> inert(kTableSize, true);
  std::vector<char32_t> seconds;  // what some character ends in when decomposed
  Decomposition parts;
  for (char32_t c = 0xA0; c < kTableSize; ++c) {
    if ((c >= 0xD800 && c <= 0xDFFF) || IsUnknown(c)) continue;
    size_t count = Decompose(c, decomposing, &parts);
    bool same = count == 1 && static_cast<char32_t>(parts[0]) == c;
    if (!same && composes) {
      if (count > 1) seconds.push_back(static_cast<char32_t>(parts[count - 1]));
      const auto composed =
          utf8proc_normalize_utf32(parts.data(), static_cast<utf8proc_ssize_t>(count),
                                   static_cast<utf8proc_option_t>(options));
      same = composed == 1 && static_cast<char32_t>(parts[0]) == c;
    }
    inert[c] = same && CombiningClass(static_cast<utf8proc_int32_t>(c)) == 0;
  }
  for (const char32_t second : seconds) {
    if (second < kTableSize) inert[second] = false;
  }
  return inert;
}

int OptionsOf(NormalForm form) {
  switch (form) {
    case NormalForm::kNfc:
      return UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    case NormalForm::kNfd:
      return UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
    case NormalForm::kNfkc:
      return UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT;
    case NormalForm::kNfkd:
      return UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT;
  }
  return 0;
}

// Sorts each run of combining marks by class. utf8proc would too, but in quadratic time.
void SortMarks(std::vector<utf8proc_int32_t>* text) {
  const auto is_mark = [](utf8proc_int32_t c) { return CombiningClass(c) != 0; };
  for (auto run = text->begin(); run != text->end();) {
    run = std::find_if(run, text->end(), is_mark);
    const auto end = std::find_if_not(run, text->end(), is_mark);
    std::stable_sort(run, end, [](utf8proc_int32_t a, utf8proc_int32_t b) {
      return CombiningClass(a) < CombiningClass(b);
    });
    run = end;
  }
}

}  // namespace

NormalFormConverter::NormalFormConverter(NormalForm form)
    : options_(OptionsOf(form)),
      inert_(std::make_shared<const std::vector<bool>>(MakeInertTable(options_))) {}

bool NormalFormConverter::IsInert(char32_t code_point) const {
  if (code_point < kTableSize) return (*inert_)[code_point];
  return code_point < kCompatibilityIdeographs.first || code_point > kCompatibilityIdeographs.last;
}

// Between inert characters texts normalize by themselves, so only what is not inert is rewritten,
// together with the one character before it, which it may compose with.
void NormalFormConverter::Apply(std::string* text) const {
  std::string out;
  size_t done = 0;
  size_t previous = 0;  // where the inert character before i begins; i if there is none
  for (size_t i = 0; i < text->size();) {
    const std::string_view rest = std::string_view(*text).substr(i);
    const char32_t code_point = FirstCodePoint(rest);
    const size_t next = i + Utf8Length(rest[0]);
    if (IsInert(code_point)) {
      previous = IsUnknown(code_point) ? next : i;
      i = next;
      continue;
    }
    size_t end = next;
    while (end < text->size() && !IsInert(FirstCodePoint(std::string_view(*text).substr(end)))) {
      end += Utf8Length((*text)[end]);
    }
    out.append(*text, done, previous - done);
    AppendNormalized(*text, previous, end, &out);
    done = previous = i = end;
  }
  if (done == 0) return;
  out.append(*text, done);
  *text = std::move(out);
}

void NormalFormConverter::AppendNormalized(const std::string& text, size_t begin, size_t end,
                                           std::string* out) const {
  std::vector<utf8proc_int32_t> characters;
  Decomposition parts;
  const int decomposing = (options_ & ~UTF8PROC_COMPOSE) | UTF8PROC_DECOMPOSE;
  for (size_t i = begin; i < end; i += Utf8Length(text[i])) {
    const size_t count =
        Decompose(FirstCodePoint(std::string_view(text).substr(i)), decomposing, &parts);
    characters.insert(characters.end(), parts.begin(), parts.begin() + count);
  }
  SortMarks(&characters);
  auto count = static_cast<utf8proc_ssize_t>(characters.size());
  if ((options_ & UTF8PROC_COMPOSE) != 0) {
    count = utf8proc_normalize_utf32(characters.data(), count,
                                     static_cast<utf8proc_option_t>(options_));
  }
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    AppendUtf8(static_cast<char32_t>(characters[static_cast<size_t>(i)]), out);
  }
}

namespace {

// Upper case that is newer than Unicode 15, or that utf8proc maps otherwise.
char32_t LowerCase(char32_t c) {
  struct Shift {
    CodePointRange range;
    int32_t by;
  };
  constexpr Shift kNewerShifts[] = {{{0x1C89, 0x1C89}, 1},      {{0xA7CB, 0xA7CB}, 0x264 - 0xA7CB},
                                    {{0xA7CC, 0xA7CC}, 1},      {{0xA7CE, 0xA7CE}, 1},
                                    {{0xA7D2, 0xA7D2}, 1},      {{0xA7D4, 0xA7D4}, 1},
                                    {{0xA7DA, 0xA7DA}, 1},      {{0xA7DC, 0xA7DC}, 0x19B - 0xA7DC},
                                    {{0x10D50, 0x10D65}, 0x20}, {{0x16EA0, 0x16EB8}, 0x1B}};
  for (const auto& [range, by] : kNewerShifts) {
    if (c >= range.first && c <= range.last) {
      return static_cast<char32_t>(static_cast<int32_t>(c) + by);
    }
  }
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
}

}  // namespace

void ToLowerCase(std::string* text) {
  std::string lower;
  lower.reserve(text->size());
  for (size_t i = 0; i < text->size(); i += Utf8Length((*text)[i])) {
    const char32_t c = FirstCodePoint(std::string_view(*text).substr(i));
    if (c < 0x80) {
      lower.push_back(static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c));
    } else if (c == 0x130) {
      lower.append("i\u0307");  // the one character whose lower case is two
    } else {
      AppendUtf8(LowerCase(c), &lower);
    }
  }
  *text = std::move(lower);
}

}  // namespace ferrite

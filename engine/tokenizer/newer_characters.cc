#include "engine/tokenizer/newer_characters.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>

#include "engine/tokenizer/utf8.h"

namespace ferrite {
namespace {

struct NewerRange {
  char32_t first;
  char32_t last;
  char32_t stand_in;
};

// Sorted. Written by tests/fixtures/tokenizer/make_newer_characters.py.
constexpr NewerRange kNewer[] = {
#include "engine/tokenizer/newer_characters.inc"
};

constexpr char32_t kFirstNewer = kNewer[0].first;
static_assert(kFirstNewer >= 0x800, "the scan skips characters of one and two bytes");

// One flag for each 256 characters: whether any of them is newer.
using Blocks = std::array<bool, 0x110000 / 256>;
constexpr Blocks MakeBlocks() {
  Blocks blocks{};
  for (const NewerRange& range : kNewer) {
    for (char32_t block = range.first / 256; block <= range.last / 256; ++block) {
      blocks[block] = true;
    }
  }
  return blocks;
}
constexpr Blocks kBlocks = MakeBlocks();

const NewerRange* FindNewer(char32_t code_point) {
  if (!kBlocks[code_point / 256]) return nullptr;
  const auto* range =
      std::partition_point(std::begin(kNewer), std::end(kNewer),
                           [&](const NewerRange& r) { return r.last < code_point; });
  return range != std::end(kNewer) && range->first <= code_point ? range : nullptr;
}

// The offset of the next byte that leads a character of three or four bytes.
size_t NextLong(std::string_view text, size_t i) {
  constexpr uint64_t kHighBits = 0x8080808080808080;
  while (true) {
    for (uint64_t eight; i + 8 <= text.size(); i += 8) {
      std::memcpy(&eight, text.data() + i, 8);
      if ((eight & kHighBits) != 0) break;
    }
    const size_t stop = std::min(text.size(), i + 8);
    for (; i < stop; ++i) {
      if (static_cast<unsigned char>(text[i]) >= 0xE0) return i;
    }
    if (i >= text.size()) return text.size();
  }
}

}  // namespace

std::string_view ReplaceNewerCharacters(std::string_view text, std::string* scratch) {
  bool copied = false;
  for (size_t i = NextLong(text, 0); i < text.size(); i = NextLong(text, i)) {
    const size_t length = Utf8Length(text[i]);
    if (const NewerRange* range = FindNewer(FirstCodePoint(text.substr(i))); range != nullptr) {
      if (!copied) scratch->assign(text);
      copied = true;
      char utf8[4];
      scratch->replace(i, length, utf8, EncodeUtf8(range->stand_in, utf8));
    }
    i += length;
  }
  return copied ? std::string_view(*scratch) : text;
}

char32_t StandInOf(char32_t code_point) {
  const NewerRange* range = FindNewer(code_point);
  return range == nullptr ? code_point : range->stand_in;
}

bool DividesNewerCharacters(char32_t first, char32_t last) {
  const auto within = [&](char32_t c) { return first <= c && c <= last; };
  return std::any_of(std::begin(kNewer), std::end(kNewer), [&](const NewerRange& range) {
    // Ends of the range may lie inside [first, last], or the other way round.
    const bool some = first <= range.last && range.first <= last;
    const bool all = within(range.first) && within(range.last);
    return within(range.stand_in) ? !all : some;
  });
}

}  // namespace ferrite

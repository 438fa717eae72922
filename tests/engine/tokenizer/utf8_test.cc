#include "engine/tokenizer/utf8.h"

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <unordered_set>

namespace ferrite {
namespace {

// By arithmetic, not by table.
std::string EncodeUtf8(uint32_t c) {
  const auto tail = [c](int shift) { return static_cast<char>(0x80 | ((c >> shift) & 0x3F)); };
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xC0 | c >> 6), tail(0)};
  if (c < 0x10000) return {static_cast<char>(0xE0 | c >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xF0 | c >> 18), tail(12), tail(6), tail(0)};
}

bool IsScalarValue(uint32_t c) { return c <= 0x10FFFF && (c < 0xD800 || c > 0xDFFF); }

TEST(Utf8Test, EveryCharacterIsValidAndReadBack) {
  for (uint32_t c = 0; c <= 0x10FFFF; ++c) {
    if (!IsScalarValue(c)) continue;
    const std::string text = EncodeUtf8(c);
    ASSERT_EQ(FindInvalidUtf8(text), std::nullopt) << c;
    ASSERT_TRUE(IsOneCharacter(text)) << c;
    ASSERT_EQ(FirstCodePoint(text), c);
  }
}

// Whether `text` is a sequence of members of `characters`.
bool IsSequence(const std::unordered_set<std::string>& characters, const std::string& text) {
  if (text.empty()) return true;
  for (size_t length = 1; length <= text.size(); ++length) {
    if (characters.contains(text.substr(0, length)) &&
        IsSequence(characters, text.substr(length))) {
      return true;
    }
  }
  return false;
}

TEST(Utf8Test, NothingElseIsValid) {
  std::unordered_set<std::string> valid;
  for (uint32_t c = 0; c <= 0x10FFFF; ++c) {
    if (IsScalarValue(c)) valid.insert(EncodeUtf8(c));
  }
  const auto check = [&valid](std::initializer_list<int> bytes) {
    std::string text;
    for (const int byte : bytes) {
      text.push_back(static_cast<char>(byte));
    }
    ASSERT_EQ(!FindInvalidUtf8(text).has_value(), IsSequence(valid, text)) << *bytes.begin();
  };
  for (int lead = 0x80; lead < 0x100; ++lead) {
    check({lead});
    for (int second = 0; second < 0x100; ++second) {
      check({lead, second});
      for (const int third : {0x00, 0x7F, 0x80, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF}) {
        check({lead, second, third});
        for (const int fourth : {0x00, 0x7F, 0x80, 0xBF, 0xC0, 0xFF}) {
          check({lead, second, third, fourth});
        }
      }
    }
  }
}

TEST(Utf8Test, NamesTheOffsetOfTheFirstBadCharacter) {
  EXPECT_EQ(FindInvalidUtf8("ab\xff"), 2u);
  EXPECT_EQ(FindInvalidUtf8("\u00e9\u65e5\xe6\x97"), 5u);
  EXPECT_EQ(FindInvalidUtf8("\x80\x80"), 0u);
}

TEST(Utf8Test, WhiteSpaceAtTheEnds) {
  const std::string text = " \t\u3000\u00a0x y\u2028\n";
  EXPECT_EQ(LeadingWhiteSpace(text), 7u);
  EXPECT_EQ(TrailingWhiteSpace(text), 4u);
  EXPECT_EQ(LeadingWhiteSpace(" \n"), 2u);
  EXPECT_EQ(TrailingWhiteSpace(" \n"), 2u);
  EXPECT_EQ(TrailingWhiteSpace("\u200b"), 0u);  // zero width, but not white space
  EXPECT_EQ(LeadingWhiteSpace(""), 0u);
}

TEST(Utf8Test, ReplacesFromTheLeft) {
  EXPECT_EQ(ReplaceAll("aaa", "aa", "b"), "ba");
  EXPECT_EQ(ReplaceAll(" x ", " ", "\u2581"), "\u2581x\u2581");
  EXPECT_EQ(ReplaceAll("abc", "b", ""), "ac");
  EXPECT_EQ(ReplaceAll("", "b", "c"), "");
}

}  // namespace
}  // namespace ferrite

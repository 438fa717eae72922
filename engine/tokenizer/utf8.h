// The little of UTF-8 and Unicode that tokenizing needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace ferrite {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// The offset of the first byte that begins no well-formed UTF-8 character (Unicode 15, table 3-7:
// no surrogates, nothing overlong, nothing above U+10FFFF), or nullopt if all of `text` is valid.
std::optional<size_t> FindInvalidUtf8(std::string_view text);

// How many bytes the character that starts with `lead` takes, in valid UTF-8.
constexpr size_t Utf8Length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

// The first character of `text`, which is valid UTF-8 and not empty.
char32_t FirstCodePoint(std::string_view text);

// Whether `text` (valid UTF-8) is exactly one character.
inline bool IsOneCharacter(std::string_view text) {
  return !text.empty() && Utf8Length(text[0]) == text.size();
}

// Unicode's White_Space property.
bool IsWhiteSpace(char32_t code_point);

// How many bytes of white space `text` (valid UTF-8) starts, or ends, with.
size_t LeadingWhiteSpace(std::string_view text);
size_t TrailingWhiteSpace(std::string_view text);

// `text` with every occurrence of `pattern` (not empty), found from the left, replaced.
std::string ReplaceAll(std::string_view text, std::string_view pattern, std::string_view content);

}  // namespace ferrite

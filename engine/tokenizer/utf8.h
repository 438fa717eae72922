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

// Appends `bytes` to `out`, with U+FFFD in place of every longest start of a character that does
// not go on as one, or byte that starts none (Unicode 15, chapter 3, "U+FFFD substitution of
// maximal subparts"). Stops before up to three bytes at the end that may still become a character,
// and returns how many bytes it took.
size_t AppendLossyUtf8(std::string_view bytes, std::string* out);

// How many bytes the character that starts with `lead` takes, in valid UTF-8.
constexpr size_t Utf8Length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

// The first character of `text`, which is valid UTF-8 and not empty.
inline char32_t FirstCodePoint(std::string_view text) {
  const auto byte = [text](size_t i) { return char32_t{static_cast<unsigned char>(text[i])}; };
  const char32_t lead = byte(0);
  if (lead < 0x80) return lead;
  if (lead < 0xE0) return (lead & 0x1F) << 6 | (byte(1) & 0x3F);
  if (lead < 0xF0) return (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
  return (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
}

// Writes a character, which is no surrogate, to `out` (4 bytes long) and returns its length.
size_t EncodeUtf8(char32_t code_point, char* out);
void AppendUtf8(char32_t code_point, std::string* out);

// Whether `text` (valid UTF-8) is exactly one character.
inline bool IsOneCharacter(std::string_view text) {
  return !text.empty() && Utf8Length(text[0]) == text.size();
}

// Unicode's White_Space property.
bool IsWhiteSpace(char32_t code_point);

// The offset of the first byte at or behind `i` that is no ASCII, or the size.
size_t SkipAscii(std::string_view text, size_t i);

// How many bytes of white space `text` (valid UTF-8) starts, or ends, with.
size_t LeadingWhiteSpace(std::string_view text);
size_t TrailingWhiteSpace(std::string_view text);

// `text` with every occurrence of `pattern` (not empty), found from the left, replaced.
std::string ReplaceAll(std::string_view text, std::string_view pattern, std::string_view content);

}  // namespace ferrite

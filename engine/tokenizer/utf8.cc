#include "engine/tokenizer/utf8.h"

namespace ferrite {
namespace {

// Bytes of the well-formed character at the start of `text`, or 0 if there is none.
size_t WellFormedLength(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const size_t length = Utf8Length(text[0]);
  if (text.size() < length) return 0;
  // The second byte's range is narrower where it decides about overlong forms and limits.
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  return length;
}

}  // namespace

std::optional<size_t> FindInvalidUtf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = WellFormedLength(text.substr(i));
    if (length == 0) return i;
    i += length;
  }
  return std::nullopt;
}

char32_t FirstCodePoint(std::string_view text) {
  const size_t length = Utf8Length(text[0]);
  const auto lead = static_cast<unsigned char>(text[0]);
  if (length == 1) return lead;
  char32_t code_point = lead & (0x7F >> length);
  for (size_t i = 1; i < length; ++i) {
    code_point = code_point << 6 | (static_cast<unsigned char>(text[i]) & 0x3F);
  }
  return code_point;
}

bool IsWhiteSpace(char32_t code_point) {
  return (code_point >= 0x09 && code_point <= 0x0D) || code_point == 0x20 || code_point == 0x85 ||
         code_point == 0xA0 || code_point == 0x1680 ||
         (code_point >= 0x2000 && code_point <= 0x200A) || code_point == 0x2028 ||
         code_point == 0x2029 || code_point == 0x202F || code_point == 0x205F ||
         code_point == 0x3000;
}

size_t LeadingWhiteSpace(std::string_view text) {
  size_t end = 0;
  while (end < text.size() && IsWhiteSpace(FirstCodePoint(text.substr(end)))) {
    end += Utf8Length(text[end]);
  }
  return end;
}

size_t TrailingWhiteSpace(std::string_view text) {
  size_t start = text.size();
  while (start > 0) {
    size_t previous = start - 1;
    while ((static_cast<unsigned char>(text[previous]) & 0xC0) == 0x80) {
      --previous;
    }
    if (!IsWhiteSpace(FirstCodePoint(text.substr(previous)))) break;
    start = previous;
  }
  return text.size() - start;
}

std::string ReplaceAll(std::string_view text, std::string_view pattern, std::string_view content) {
  std::string result;
  result.reserve(text.size() + text.size() / 4);
  size_t start = 0;
  for (size_t hit; (hit = text.find(pattern, start)) != std::string_view::npos;
       start = hit + pattern.size()) {
    result.append(text, start, hit - start);
    result.append(content);
  }
  result.append(text, start);
  return result;
}

}  // namespace ferrite

#include "engine/tokenizer/utf8.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace ferrite {
namespace {

// How far the bytes at the start of a text get on the way to a well-formed character.
struct Progress {
  size_t taken;   // bytes that could start one; 0 if the first byte starts none
  size_t length;  // of the character that the first byte promises
  bool complete() const { return taken == length; }
};

Progress Advance(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {1, 1};
  if (lead < 0xC2 || lead > 0xF4) return {0, 1};
  const size_t length = Utf8Length(text[0]);
  // The second byte's range is narrower where it decides about overlong forms and limits.
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (text.size() < 2 || byte(1) < low || byte(1) > high) return {1, length};
  size_t taken = 2;
  while (taken < length && taken < text.size() && (byte(taken) & 0xC0) == 0x80) ++taken;
  return {taken, length};
}

}  // namespace

size_t SkipAscii(std::string_view text, size_t i) {
  constexpr uint64_t kHighBits = 0x8080808080808080;
  for (uint64_t eight; i + 8 <= text.size(); i += 8) {
    std::memcpy(&eight, text.data() + i, 8);
    if ((eight & kHighBits) != 0) break;
  }
  while (i < text.size() && static_cast<unsigned char>(text[i]) < 0x80) ++i;
  return i;
}

std::optional<size_t> FindInvalidUtf8(std::string_view text) {
  for (size_t i = SkipAscii(text, 0); i < text.size();) {
    const Progress progress = Advance(text.substr(i));
    if (!progress.complete()) return i;
    i += progress.length;
    if (i < text.size() && static_cast<unsigned char>(text[i]) < 0x80) i = SkipAscii(text, i);
  }
  return std::nullopt;
}

size_t AppendLossyUtf8(std::string_view bytes, std::string* out) {
  size_t done = 0;  // appended
  size_t i = 0;
  while ((i = SkipAscii(bytes, i)) < bytes.size()) {
    const Progress progress = Advance(bytes.substr(i));
    if (progress.complete()) {
      i += progress.length;
      continue;
    }
    if (progress.taken > 0 && i + progress.taken == bytes.size()) break;
    out->append(bytes, done, i - done);
    out->append(kReplacementCharacter);
    i += std::max<size_t>(progress.taken, 1);
    done = i;
  }
  out->append(bytes, done, i - done);
  return i;
}

size_t EncodeUtf8(char32_t code_point, char* out) {
  const auto tail = [code_point](int shift) {
    return static_cast<char>(0x80 | (code_point >> shift & 0x3F));
  };
  if (code_point < 0x80) {
    out[0] = static_cast<char>(code_point);
    return 1;
  }
  if (code_point < 0x800) {
    out[0] = static_cast<char>(0xC0 | code_point >> 6);
    out[1] = tail(0);
    return 2;
  }
  if (code_point < 0x10000) {
    out[0] = static_cast<char>(0xE0 | code_point >> 12);
    out[1] = tail(6);
    out[2] = tail(0);
    return 3;
  }
  out[0] = static_cast<char>(0xF0 | code_point >> 18);
  out[1] = tail(12);
  out[2] = tail(6);
  out[3] = tail(0);
  return 4;
}

void AppendUtf8(char32_t code_point, std::string* out) {
  char utf8[4];
  out->append(utf8, EncodeUtf8(code_point, utf8));
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

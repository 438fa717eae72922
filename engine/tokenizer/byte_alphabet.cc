#include "engine/tokenizer/byte_alphabet.h"

#include <array>
#include <cstddef>

#include "engine/tokenizer/utf8.h"

namespace ferrite {
namespace {

constexpr size_t kEnd = 0x144;  // one more than the alphabet's last character

constexpr bool Prints(char32_t c) {
  return (c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF);
}

constexpr std::array<char32_t, 256> MakeCharacters() {
  std::array<char32_t, 256> characters{};
  char32_t next = 0x100;
  for (size_t byte = 0; byte < 256; ++byte) {
    characters[byte] = Prints(byte) ? static_cast<char32_t>(byte) : next++;
  }
  return characters;
}
constexpr std::array<char32_t, 256> kCharacters = MakeCharacters();

// -1 where a character stands for no byte.
constexpr std::array<int, kEnd> MakeBytes() {
  std::array<int, kEnd> bytes{};
  bytes.fill(-1);
  for (size_t byte = 0; byte < 256; ++byte) {
    bytes[kCharacters[byte]] = static_cast<int>(byte);
  }
  return bytes;
}
constexpr std::array<int, kEnd> kByteOfCharacter = MakeBytes();

}  // namespace

char32_t CharacterOfByte(unsigned char byte) { return kCharacters[byte]; }

void AppendByteCharacters(std::string_view bytes, std::string* out) {
  for (const char byte : bytes) {
    AppendUtf8(CharacterOfByte(static_cast<unsigned char>(byte)), out);
  }
}

std::optional<std::string> BytesOfCharacters(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  for (size_t i = 0; i < text.size(); i += Utf8Length(text[i])) {
    const char32_t character = FirstCodePoint(text.substr(i));
    if (character >= kEnd || kByteOfCharacter[character] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kByteOfCharacter[character]));
  }
  return bytes;
}

}  // namespace ferrite

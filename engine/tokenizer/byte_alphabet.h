// The characters that stand for bytes in the vocabularies of byte-level tokenizers.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace ferrite {

// GPT-2's alphabet (its encoder.py, bytes_to_unicode): a byte that prints in Latin-1 is that
// character, the others are U+0100 and following, in order.
char32_t CharacterOfByte(unsigned char byte);

// Appends the characters that stand for `bytes`.
void AppendByteCharacters(std::string_view bytes, std::string* out);

// The bytes that `text` (valid UTF-8) stands for, or nullopt if a character of it stands for none.
std::optional<std::string> BytesOfCharacters(std::string_view text);

}  // namespace ferrite

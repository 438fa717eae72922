#include "engine/tokenizer/word_character.h"

#include <utf8proc.h>

#include "engine/tokenizer/newer_characters.h"
#include "engine/tokenizer/utf8.h"

namespace ferrite {
namespace {

bool IsWordCharacter(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(StandInOf(c)))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    case UTF8PROC_CATEGORY_SO:  // circled and squared letters are alphabetic
      return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
             (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
    default:
      return c == 0x200C || c == 0x200D;
  }
}

}  // namespace

bool StartsWithWordCharacter(std::string_view text) {
  return !text.empty() && IsWordCharacter(FirstCodePoint(text));
}

bool EndsWithWordCharacter(std::string_view text) {
  if (text.empty()) return false;
  size_t last = text.size() - 1;
  while ((static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) {
    --last;
  }
  return IsWordCharacter(FirstCodePoint(text.substr(last)));
}

}  // namespace ferrite

// Characters that the reference tokenizer library knows and the distributions' PCRE2 may not.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ferrite {

// The reference's regular expressions go by Unicode 16, those of PCRE2 10.42 by Unicode 14. So a
// character that the two classify differently is shown to PCRE2 as an older one, of the same
// category, script (as far as patterns can name it) and length in UTF-8.

// Replaces them in `text` (valid UTF-8): the result, kept in `scratch`, has the same length.
// Returns `text` itself if there are none.
std::string_view ReplaceNewerCharacters(std::string_view text, std::string* scratch);

// The character that is shown in place of `code_point`: itself unless it is newer.
char32_t StandInOf(char32_t code_point);

// Whether [first, last] holds a newer character but not its stand-in, or the reverse, so that a
// pattern with that range would see the difference.
bool DividesNewerCharacters(char32_t first, char32_t last);

}  // namespace ferrite

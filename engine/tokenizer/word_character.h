// What counts as part of a word.
#pragma once

#include <string_view>

namespace ferrite {

// Whether `text` (valid UTF-8) starts, or ends, with a letter, mark, digit, connector or joiner: \w
// of Unicode Technical Standard 18, annex C, by Unicode 16.
bool StartsWithWordCharacter(std::string_view text);
bool EndsWithWordCharacter(std::string_view text);

}  // namespace ferrite

// Rewrites Oniguruma's regular expressions, which tokenizer files hold, for PCRE2.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace ferrite {

// A tokenizer.json's patterns are in Oniguruma's Ruby syntax (its doc/RE). The result matches the
// same with PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE and line feeds as the only newlines, on text
// whose newer characters have been replaced (newer_characters.h). Groups no longer capture.
// Unimplemented names a construct that PCRE2 lacks or might take differently; what is broken may
// come out broken, for the compiler to complain.
absl::StatusOr<std::string> TranslateRegex(std::string_view pattern);

}  // namespace ferrite

// The trace that a call belongs to, as W3C's Trace Context has it
// (https://www.w3.org/TR/trace-context).
#pragma once

#include <optional>
#include <string_view>

namespace ferrite {

// The trace id in a `traceparent` header, 32 hexadecimal digits; a view into `header`. Nothing if
// the header is not valid: 00-TRACEID-PARENTID-FLAGS in lower case, neither id all zeros; a later
// version may have more behind another dash, and version ff is none.
std::optional<std::string_view> ParseTraceparent(std::string_view header);

}  // namespace ferrite

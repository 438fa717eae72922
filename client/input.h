// Texts and token ids as a user types them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/console.h"

namespace ferrite {

// Whether a protobuf string can hold `text`.
bool IsUtf8(const std::string& text);

// The argument; or, where it is "-", or absent with an input that is no terminal, the whole input
// without one final newline. InvalidArgument if there is nothing to read or it is not UTF-8;
// `what` is what the message calls it.
absl::StatusOr<std::string> ReadText(const std::optional<std::string>& argument, const char* what,
                                     const Console& console);

// The lines of a file, or of the input where `path` is "-", without their line feeds; what follows
// the last line feed is a line if it is not empty. InvalidArgument if it cannot be read or a line
// is not UTF-8.
absl::StatusOr<std::vector<std::string>> ReadLines(const std::string& path, const Console& console);

// Ids separated by commas or blanks. InvalidArgument names what is no 32-bit integer.
absl::StatusOr<std::vector<int32_t>> ParseTokenIds(const std::string& text);

}  // namespace ferrite

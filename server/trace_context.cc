#include "server/trace_context.h"

#include <cstddef>

namespace ferrite {
namespace {

constexpr size_t kLength = 55;  // of version 00

bool IsLowerHex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

bool IsZero(std::string_view text) { return text.find_first_not_of('0') == std::string_view::npos; }

}  // namespace

std::optional<std::string_view> ParseTraceparent(std::string_view header) {
  if (header.size() < kLength || header[2] != '-' || header[35] != '-' || header[52] != '-') {
    return std::nullopt;
  }
  const std::string_view version = header.substr(0, 2);
  const std::string_view trace = header.substr(3, 32);
  const std::string_view parent = header.substr(36, 16);
  const std::string_view flags = header.substr(53, 2);
  if (!IsLowerHex(version) || !IsLowerHex(trace) || !IsLowerHex(parent) || !IsLowerHex(flags) ||
      version == "ff" || IsZero(trace) || IsZero(parent)) {
    return std::nullopt;
  }
  const bool more = header.size() > kLength;
  if (more && (version == "00" || header[kLength] != '-')) {
    return std::nullopt;
  }
  return trace;
}

}  // namespace ferrite

// Small files that the server reads while it runs.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace ferrite {

inline constexpr size_t kLargestSmallFile = size_t{1} << 20;  // bytes

// All of the file. NotFound, naming `key` of the config, `path` and the reason, if it cannot be
// read or is larger than kLargestSmallFile.
absl::StatusOr<std::string> ReadConfiguredFile(const std::string& key, const std::string& path);

}  // namespace ferrite

// The file of bearer tokens: hashes only, so that whoever reads it cannot call the server.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ferrite {

using Sha256Digest = std::array<uint8_t, 32>;

Sha256Digest Sha256(std::string_view text);

// One line of the file.
struct TokenEntry {
  std::string name;          // what messages and logs call the token
  Sha256Digest digest{};     // SHA-256 of the token
  int32_t max_requests = 0;  // requests in flight at a time; 0: any number
};

// Parses `name:sha256hex` or `name:sha256hex max_requests=N`, a line each; blank lines and lines
// that begin with # count for nothing. A name has 1 to 64 letters, digits, '.', '_' or '-'.
// InvalidArgument, naming `path` and the line and never a hash, for anything else, for a name or a
// hash that stands twice, and for a file without a token.
absl::StatusOr<std::vector<TokenEntry>> ParseTokenFile(const std::string& path,
                                                       std::string_view text);

// The position of the entry with this digest, or -1. Compares with every entry in full, so that the
// time says nothing about how much of a digest was right.
int FindDigest(const std::vector<TokenEntry>& entries, const Sha256Digest& digest);

}  // namespace ferrite

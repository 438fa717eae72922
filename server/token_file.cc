#include "server/token_file.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

constexpr size_t kLongestName = 64;
constexpr int32_t kMostRequests = 1'000'000;

bool IsName(absl::string_view name) {
  return !name.empty() && name.size() <= kLongestName &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' ||
                  c == '-';
         });
}

// What is wrong is said without the text of the line: it may hold a token where its hash should be.
absl::Status ParseLine(absl::string_view line, TokenEntry* entry) {
  const std::vector<absl::string_view> words =
      absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  const std::vector<absl::string_view> parts = absl::StrSplit(words[0], ':');
  if (parts.size() != 2) {
    return absl::InvalidArgumentError("is not like name:sha256 or name:sha256 max_requests=N");
  }
  if (!IsName(parts[0])) {
    return absl::InvalidArgumentError(absl::StrCat("has a name that is not 1 to ", kLongestName,
                                                   " letters, digits, '.', '_' or '-'"));
  }
  entry->name = std::string(parts[0]);
  const bool is_hex = std::all_of(parts[1].begin(), parts[1].end(), [](char c) {
    return absl::ascii_isxdigit(static_cast<unsigned char>(c));
  });
  if (parts[1].size() != 2 * entry->digest.size() || !is_hex) {
    return absl::InvalidArgumentError(
        absl::StrCat("of '", entry->name, "' has no SHA-256 of 64 hexadecimal digits"));
  }
  const std::string digest = absl::HexStringToBytes(parts[1]);
  std::copy(digest.begin(), digest.end(), entry->digest.begin());
  for (size_t i = 1; i < words.size(); ++i) {
    absl::string_view value = words[i];
    if (entry->max_requests != 0 || !absl::ConsumePrefix(&value, "max_requests=") ||
        !absl::SimpleAtoi(value, &entry->max_requests) || entry->max_requests < 1 ||
        entry->max_requests > kMostRequests) {
      return absl::InvalidArgumentError(
          absl::StrCat("of '", entry->name, "' has more than one max_requests=N, N from 1 to ",
                       kMostRequests, ", behind the hash"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

Sha256Digest Sha256(std::string_view text) {
  Sha256Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

absl::StatusOr<std::vector<TokenEntry>> ParseTokenFile(const std::string& path,
                                                       std::string_view text) {
  std::vector<TokenEntry> entries;
  std::map<std::string, int> names;  // to the line
  std::map<Sha256Digest, int> digests;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line[0] == '#') continue;
    const auto refuse = [&](absl::string_view problem) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": the line ", problem));
    };
    TokenEntry entry;
    if (const absl::Status status = ParseLine(line, &entry); !status.ok()) {
      return refuse(status.message());
    }
    if (const auto [first, is_new] = names.emplace(entry.name, number); !is_new) {
      return refuse(absl::StrCat("names '", entry.name, "', and so does line ", first->second));
    }
    if (const auto [first, is_new] = digests.emplace(entry.digest, number); !is_new) {
      return refuse(absl::StrCat("of '", entry.name, "' has the hash of line ", first->second));
    }
    entries.push_back(std::move(entry));
  }
  if (entries.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": holds no token; nobody could call"));
  }
  return entries;
}

int FindDigest(const std::vector<TokenEntry>& entries, const Sha256Digest& digest) {
  int found = -1;
  for (size_t i = 0; i < entries.size(); ++i) {
    const bool equal = CRYPTO_memcmp(entries[i].digest.data(), digest.data(), digest.size()) == 0;
    found = equal ? static_cast<int>(i) : found;
  }
  return found;
}

}  // namespace ferrite

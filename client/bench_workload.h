// How long the requests of a benchmark are, and what they share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ferrite {

inline constexpr int32_t kMostBenchTokens = 1 << 24;

// Lengths drawn uniformly, both ends included.
struct TokenRange {
  int32_t least = 128;
  int32_t most = 128;
};

// "128" or "64..512", from 1 to kMostBenchTokens; nothing if it is neither.
std::optional<TokenRange> ParseTokenRange(const std::string& text);

// "128" or "64..512".
std::string ToString(const TokenRange& range);

struct BenchWorkload {
  TokenRange prompt_tokens;  // of each turn, beside what it shares or continues
  TokenRange output_tokens;  // of each turn
  std::string dataset;       // the file that lengths come from instead; empty: none
  int32_t shared_prefix_tokens = 0;
  int32_t prefixes = 1;  // request i begins with number i % prefixes
  int32_t turns = 1;     // of each conversation
  uint64_t seed = 0;
  double temperature = 0;
  std::optional<std::string> model;
  std::string cache_salt;  // of every request; empty: none
};

struct BenchLengths {
  int32_t prompt_tokens = 0;
  int32_t output_tokens = 0;
};

// One request of a dataset: lengths, or the texts that they are to be counted of.
struct DatasetEntry {
  BenchLengths lengths;
  std::string prompt;  // empty where the lengths are known
  std::string answer;
};

struct Dataset {
  std::vector<DatasetEntry> entries;
  int64_t skipped = 0;  // conversations without a prompt and an answer
};

// A JSON array of entries, or an entry a line. An entry is {"prompt_tokens": N, "output_tokens": N}
// or, as in ShareGPT's files, {"conversations": [{"value": "prompt"}, {"value": "answer"}, ...]},
// of which the first two count; other members are ignored. InvalidArgument names `name`, the line
// (of an array: the entry), the member and its value.
absl::StatusOr<Dataset> ParseDataset(const std::string& text, const std::string& name);

// The same of a file.
absl::StatusOr<Dataset> ReadDataset(const std::string& path);

}  // namespace ferrite

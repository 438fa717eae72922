// What a worker has cached, for other threads to ask.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/histogram.h"
#include "engine/ids.h"

namespace ferrite {

using PrefixId = uint64_t;
inline constexpr PrefixId kRootBit = uint64_t{1} << 63;
inline constexpr PrefixId kSharedRoot = kRootBit;  // of prompts that share with all others

// Names everything from the first token up to the end of a block.
struct Prefix {
  // Never used twice by an index, so that equal ids mean equal tokens. Roots, which name nothing
  // yet, have kRootBit.
  PrefixId id = 0;
  uint64_t hash = 0;  // of the root and the tokens: the same in all indexes

  bool operator==(const Prefix&) const = default;
};
constexpr Prefix RootPrefix(PrefixId root) { return {.id = root, .hash = root}; }

// The hash of a prefix that goes on with a block of `tokens` after one with the hash `parent`.
uint64_t HashAfter(uint64_t parent, std::span<const TokenId> tokens);

// How many prefixes of each hash a PrefixIndex has, in counters of which each serves many hashes:
// good for an estimate, which is never too low, and too high by a block in one case out of eight at
// the most. Neither side waits for the other. One thread adds and removes; any may ask.
class PrefixSummary {
 public:
  PrefixSummary(int32_t num_blocks, int32_t block_size);

  void Add(uint64_t hash) { counter(hash).Add(1); }
  void Remove(uint64_t hash) { counter(hash).Add(-1); }

  // About how many of `tokens`, which begin at `root`, need not be computed: whole blocks, and
  // never the last token.
  int32_t CachedTokens(PrefixId root, std::span<const TokenId> tokens) const;

 private:
  static constexpr size_t kCountersPerBlock = 8;

  SingleWriter<int32_t>& counter(uint64_t hash) { return counters_[hash & (counters_.size() - 1)]; }

  const size_t block_size_;
  std::vector<SingleWriter<int32_t>> counters_;  // a power of two of them
};

}  // namespace ferrite

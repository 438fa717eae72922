#include "engine/prefix_summary.h"

#include <bit>

#include "absl/hash/hash.h"
#include "absl/types/span.h"

namespace ferrite {

uint64_t HashAfter(uint64_t parent, std::span<const TokenId> tokens) {
  return absl::HashOf(parent, absl::MakeConstSpan(tokens.data(), tokens.size()));
}

PrefixSummary::PrefixSummary(int32_t num_blocks, int32_t block_size)
    : block_size_(block_size),
      counters_(std::bit_ceil(static_cast<size_t>(num_blocks) * kCountersPerBlock)) {}

int32_t PrefixSummary::CachedTokens(PrefixId root, std::span<const TokenId> tokens) const {
  uint64_t hash = RootPrefix(root).hash;
  size_t cached = 0;
  for (; cached + block_size_ < tokens.size(); cached += block_size_) {
    hash = HashAfter(hash, tokens.subspan(cached, block_size_));
    if (counters_[hash & (counters_.size() - 1)].value() == 0) {
      break;
    }
  }
  return static_cast<int32_t>(cached);
}

}  // namespace ferrite

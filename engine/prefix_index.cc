#include "engine/prefix_index.h"

#include <algorithm>
#include <bit>
#include <cassert>

#include "absl/hash/hash.h"
#include "absl/types/span.h"

namespace ferrite {

PrefixIndex::PrefixIndex(int32_t num_blocks, int32_t block_size)
    : block_size_(block_size),
      entries_(num_blocks),
      tokens_(static_cast<size_t>(num_blocks) * block_size),
      buckets_(std::bit_ceil(static_cast<size_t>(num_blocks) + 1), kNone) {}

size_t PrefixIndex::BucketOf(PrefixId parent, std::span<const TokenId> tokens) const {
  const auto content = absl::MakeConstSpan(tokens.data(), tokens.size());
  return absl::HashOf(parent, content) & (buckets_.size() - 1);
}

std::optional<PrefixIndex::Node> PrefixIndex::Find(PrefixId parent,
                                                   std::span<const TokenId> tokens) const {
  for (int32_t at = buckets_[BucketOf(parent, tokens)]; at != kNone; at = entries_[at].next) {
    const Entry& entry = entries_[at];
    if (entry.parent == parent &&
        std::equal(tokens.begin(), tokens.end(), tokens_.begin() + int64_t{at} * block_size_)) {
      return Node{.block = BlockId{at}, .id = entry.id, .step = entry.step};
    }
  }
  return std::nullopt;
}

PrefixId PrefixIndex::Insert(BlockId block, PrefixId parent, std::span<const TokenId> tokens,
                             uint64_t step) {
  assert(!Contains(block) && static_cast<int32_t>(tokens.size()) == block_size_);
  Entry& entry = entries_[block.value];
  const size_t bucket = BucketOf(parent, tokens);
  entry = {
      .id = ++last_id_, .parent = parent, .step = step, .bucket = bucket, .next = buckets_[bucket]};
  std::copy(tokens.begin(), tokens.end(), tokens_.begin() + int64_t{block.value} * block_size_);
  buckets_[bucket] = block.value;
  return entry.id;
}

void PrefixIndex::Erase(BlockId block) {
  assert(Contains(block));
  Entry& entry = entries_[block.value];
  int32_t* link = &buckets_[entry.bucket];
  while (*link != block.value) {
    link = &entries_[*link].next;
  }
  *link = entry.next;
  entry = {};
}

}  // namespace ferrite

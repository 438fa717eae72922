#include "engine/prefix_index.h"

#include <algorithm>
#include <bit>
#include <cassert>

namespace ferrite {

PrefixIndex::PrefixIndex(int32_t num_blocks, int32_t block_size, PrefixSummary* summary)
    : block_size_(block_size),
      summary_(summary),
      entries_(num_blocks),
      tokens_(static_cast<size_t>(num_blocks) * block_size),
      buckets_(std::bit_ceil(static_cast<size_t>(num_blocks) + 1), kNone) {}

std::optional<PrefixIndex::Node> PrefixIndex::Find(const Prefix& parent,
                                                   std::span<const TokenId> tokens) const {
  const size_t bucket = BucketOf(HashAfter(parent.hash, tokens));
  for (int32_t at = buckets_[bucket]; at != kNone; at = entries_[at].next) {
    const Entry& entry = entries_[at];
    if (entry.parent == parent.id &&
        std::equal(tokens.begin(), tokens.end(), tokens_.begin() + int64_t{at} * block_size_)) {
      return Node{.block = BlockId{at}, .prefix = entry.prefix, .step = entry.step};
    }
  }
  return std::nullopt;
}

Prefix PrefixIndex::Insert(BlockId block, const Prefix& parent, std::span<const TokenId> tokens,
                           uint64_t step) {
  assert(!Contains(block) && static_cast<int32_t>(tokens.size()) == block_size_);
  Entry& entry = entries_[block.value];
  const uint64_t hash = HashAfter(parent.hash, tokens);
  int32_t& first = buckets_[BucketOf(hash)];
  entry = {.prefix = {++last_id_, hash}, .parent = parent.id, .step = step, .next = first};
  std::copy(tokens.begin(), tokens.end(), tokens_.begin() + int64_t{block.value} * block_size_);
  first = block.value;
  if (summary_ != nullptr) {
    summary_->Add(hash);
  }
  return entry.prefix;
}

void PrefixIndex::Erase(BlockId block) {
  assert(Contains(block));
  Entry& entry = entries_[block.value];
  int32_t* link = &buckets_[BucketOf(entry.prefix.hash)];
  while (*link != block.value) {
    link = &entries_[*link].next;
  }
  *link = entry.next;
  if (summary_ != nullptr) {
    summary_->Remove(entry.prefix.hash);
  }
  entry = {};
}

}  // namespace ferrite

// Which KV blocks hold the beginnings of which prompts.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/ids.h"
#include "engine/prefix_summary.h"

namespace ferrite {

// A trie whose nodes are full blocks: each is found by its parent and its tokens, and tokens are
// compared, never their hashes alone. Allocates nothing after construction. Thread-compatible: a
// worker's own.
class PrefixIndex {
 public:
  struct Node {
    BlockId block;
    Prefix prefix;
    uint64_t step;  // the step that computes what it holds
  };

  // Keeps `summary` up to date, unless it is null; it must outlive the index.
  PrefixIndex(int32_t num_blocks, int32_t block_size, PrefixSummary* summary = nullptr);

  // The node whose block holds `tokens` (block_size of them) after `parent`.
  std::optional<Node> Find(const Prefix& parent, std::span<const TokenId> tokens) const;

  // Adds `block`, which is not in the index, for a place that nothing holds yet. Returns its name.
  Prefix Insert(BlockId block, const Prefix& parent, std::span<const TokenId> tokens,
                uint64_t step);

  bool Contains(BlockId block) const { return entries_[block.value].prefix.id != 0; }

  // Takes the block out. What follows it can no longer be found, and is useless until it is taken
  // out as well.
  void Erase(BlockId block);

 private:
  static constexpr int32_t kNone = -1;

  struct Entry {
    Prefix prefix;  // with the id 0: not in the index
    PrefixId parent = 0;
    uint64_t step = 0;
    int32_t next = kNone;  // the next block of the bucket
  };

  size_t BucketOf(uint64_t hash) const { return hash & (buckets_.size() - 1); }

  const int32_t block_size_;
  PrefixSummary* const summary_;
  std::vector<Entry> entries_;    // [num_blocks]
  std::vector<TokenId> tokens_;   // [num_blocks][block_size]
  std::vector<int32_t> buckets_;  // the first block of each; a power of two of them
  PrefixId last_id_ = 0;
};

}  // namespace ferrite

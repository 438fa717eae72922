// Hands out the fixed-size blocks of a KV pool, and remembers what those hold that are free.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/ids.h"
#include "engine/prefix_index.h"

namespace ferrite {

// Blocks are reference-counted, so that sequences can share them. A block that the index of
// prefixes has keeps its content when its last reference goes: it counts as free, can be referenced
// again, and is handed out for something else only when no empty one is left, the one that was
// released first before the others. Allocates nothing after construction. Thread-compatible: a
// worker's own.
class BlockManager {
 public:
  // `summary`: as of PrefixIndex.
  BlockManager(int32_t num_blocks, int32_t block_size, PrefixSummary* summary = nullptr);

  // A block with one reference; nothing if none is free.
  std::optional<BlockId> Allocate();
  // Of a block that is referenced, or that the index has.
  void AddReference(BlockId block);
  // Frees the block with its last reference.
  void Release(BlockId block);

  // The block that holds `tokens` (block_size of them) after `parent`.
  std::optional<PrefixIndex::Node> FindPrefix(const Prefix& parent,
                                              std::span<const TokenId> tokens) const {
    return index_.Find(parent, tokens);
  }
  // Lets others find a referenced block by what step `step` makes it hold; `keep`: also once its
  // last reference is gone. Returns the prefix's name; if another block holds the same already,
  // that one's.
  Prefix AddPrefix(BlockId block, const Prefix& parent, std::span<const TokenId> tokens,
                   uint64_t step, bool keep);
  // Forgets what blocks hold.
  void ForgetPrefixes();

  // How many blocks hold `num_tokens` tokens.
  int32_t BlocksFor(int64_t num_tokens) const {
    return static_cast<int32_t>((num_tokens + block_size_ - 1) / block_size_);
  }
  bool is_referenced(BlockId block) const { return states_[block.value].references > 0; }
  int32_t num_free() const { return static_cast<int32_t>(empty_.size()) + num_kept_; }
  int32_t num_blocks() const { return static_cast<int32_t>(states_.size()); }
  int32_t block_size() const { return block_size_; }

 private:
  static constexpr int32_t kNone = -1;

  struct State {
    int32_t references = 0;
    bool keep = false;
    // In the list of those that are kept.
    int32_t before = kNone;
    int32_t after = kNone;
  };

  void AppendKept(int32_t block);
  void RemoveKept(int32_t block);

  const int32_t block_size_;
  PrefixIndex index_;
  std::vector<State> states_;   // [num_blocks]
  std::vector<BlockId> empty_;  // a stack: the block freed last is the warmest
  int32_t oldest_kept_ = kNone;
  int32_t newest_kept_ = kNone;
  int32_t num_kept_ = 0;
};

}  // namespace ferrite

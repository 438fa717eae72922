// Hands out the fixed-size blocks of a KV pool.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/ids.h"

namespace ferrite {

// Blocks are reference-counted, so that sequences can share them. Allocates nothing after
// construction. Thread-compatible: a worker's own.
class BlockManager {
 public:
  BlockManager(int32_t num_blocks, int32_t block_size);

  // A block with one reference; nothing if none is free.
  std::optional<BlockId> Allocate();
  void AddReference(BlockId block);
  // Frees the block with its last reference.
  void Release(BlockId block);

  // How many blocks hold `num_tokens` tokens.
  int32_t BlocksFor(int64_t num_tokens) const {
    return static_cast<int32_t>((num_tokens + block_size_ - 1) / block_size_);
  }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_blocks() const { return static_cast<int32_t>(references_.size()); }
  int32_t block_size() const { return block_size_; }

 private:
  int32_t block_size_;
  std::vector<BlockId> free_;        // a stack: the block freed last is the warmest
  std::vector<int32_t> references_;  // [num_blocks]
};

}  // namespace ferrite

#include "engine/block_manager.h"

#include <cassert>

namespace ferrite {

BlockManager::BlockManager(int32_t num_blocks, int32_t block_size)
    : block_size_(block_size), references_(num_blocks, 0) {
  free_.reserve(num_blocks);
  for (int32_t i = num_blocks - 1; i >= 0; --i) {
    free_.push_back(BlockId{i});
  }
}

std::optional<BlockId> BlockManager::Allocate() {
  if (free_.empty()) {
    return std::nullopt;
  }
  const BlockId block = free_.back();
  free_.pop_back();
  references_[block.value] = 1;
  return block;
}

void BlockManager::AddReference(BlockId block) {
  assert(references_[block.value] > 0);
  ++references_[block.value];
}

void BlockManager::Release(BlockId block) {
  assert(references_[block.value] > 0);
  if (--references_[block.value] == 0) {
    free_.push_back(block);
  }
}

}  // namespace ferrite

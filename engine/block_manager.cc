#include "engine/block_manager.h"

#include <cassert>

namespace ferrite {

BlockManager::BlockManager(int32_t num_blocks, int32_t block_size, PrefixSummary* summary)
    : block_size_(block_size), index_(num_blocks, block_size, summary), states_(num_blocks) {
  empty_.reserve(num_blocks);
  for (int32_t i = num_blocks - 1; i >= 0; --i) {
    empty_.push_back(BlockId{i});
  }
}

std::optional<BlockId> BlockManager::Allocate() {
  BlockId block;
  if (!empty_.empty()) {
    block = empty_.back();
    empty_.pop_back();
  } else if (oldest_kept_ != kNone) {
    block = BlockId{oldest_kept_};
    RemoveKept(block.value);
    index_.Erase(block);
  } else {
    return std::nullopt;
  }
  states_[block.value] = {.references = 1};
  return block;
}

void BlockManager::AddReference(BlockId block) {
  State& state = states_[block.value];
  if (state.references == 0) {
    RemoveKept(block.value);
  }
  ++state.references;
}

void BlockManager::Release(BlockId block) {
  State& state = states_[block.value];
  assert(state.references > 0);
  if (--state.references > 0) {
    return;
  }
  if (state.keep) {
    AppendKept(block.value);
    return;
  }
  if (index_.Contains(block)) {
    index_.Erase(block);
  }
  empty_.push_back(block);
}

Prefix BlockManager::AddPrefix(BlockId block, const Prefix& parent, std::span<const TokenId> tokens,
                               uint64_t step, bool keep) {
  assert(is_referenced(block));
  if (const std::optional<PrefixIndex::Node> there = index_.Find(parent, tokens)) {
    return there->prefix;
  }
  states_[block.value].keep = keep;
  return index_.Insert(block, parent, tokens, step);
}

void BlockManager::ForgetPrefixes() {
  while (oldest_kept_ != kNone) {
    const BlockId block{oldest_kept_};
    RemoveKept(block.value);
    empty_.push_back(block);
  }
  for (int32_t i = 0; i < num_blocks(); ++i) {
    states_[i].keep = false;
    if (index_.Contains(BlockId{i})) {
      index_.Erase(BlockId{i});
    }
  }
}

void BlockManager::AppendKept(int32_t block) {
  State& state = states_[block];
  state.before = newest_kept_;
  state.after = kNone;
  (newest_kept_ == kNone ? oldest_kept_ : states_[newest_kept_].after) = block;
  newest_kept_ = block;
  ++num_kept_;
}

void BlockManager::RemoveKept(int32_t block) {
  const State& state = states_[block];
  assert(state.references == 0 && state.keep);
  (state.before == kNone ? oldest_kept_ : states_[state.before].after) = state.after;
  (state.after == kNone ? newest_kept_ : states_[state.after].before) = state.before;
  --num_kept_;
}

}  // namespace ferrite

// Which pairs of tokens merge, in what order, and to what.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/ids.h"
#include "engine/tokenizer/token_index.h"

namespace ferrite {

// A hash table from pair to rank with linear probing, at most half full: one cache line a look-up.
class MergeTable {
 public:
  struct Merge {
    TokenId left;
    TokenId right;
    TokenId result;
  };
  static constexpr uint32_t kNoRank = UINT32_MAX;

  MergeTable() : MergeTable(std::span<const Merge>()) {}

  // A merge's rank is its index, the lowest first. Of equal pairs the last counts.
  explicit MergeTable(std::span<const Merge> merges) {
    const size_t size = std::bit_ceil(merges.size() * 2 + 2);
    shift_ = 64 - std::countr_zero(size);
    slots_.resize(size);
    for (const Merge& merge : merges) {
      Slot& slot = slots_[Locate(Key(merge.left, merge.right))];
      slot.key = Key(merge.left, merge.right);
      slot.rank = static_cast<uint32_t>(results_.size());
      results_.push_back(merge.result);
    }
  }

  // kNoRank if the two do not merge. Ids are not negative.
  uint32_t Rank(TokenId left, TokenId right) const { return slots_[Locate(Key(left, right))].rank; }

  TokenId Result(uint32_t rank) const { return results_[rank]; }

 private:
  static constexpr uint64_t kEmpty = UINT64_MAX;
  struct Slot {
    uint64_t key = kEmpty;
    uint32_t rank = kNoRank;
  };

  static uint64_t Key(TokenId left, TokenId right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }

  // The slot that holds `key`, or the empty one where it would go.
  size_t Locate(uint64_t key) const {
    // Fibonacci hashing: the high bits of the product depend on every bit of the key.
    size_t i = static_cast<size_t>((key * 0x9E3779B97F4A7C15) >> shift_);
    while (slots_[i].key != key && slots_[i].key != kEmpty) {
      i = (i + 1) & (slots_.size() - 1);
    }
    return i;
  }

  int shift_;
  std::vector<Slot> slots_;
  std::vector<TokenId> results_;  // by rank
};

}  // namespace ferrite

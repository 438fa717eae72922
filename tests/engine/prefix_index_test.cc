#include "engine/prefix_index.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

namespace ferrite {
namespace {

using Tokens = std::vector<TokenId>;

TEST(PrefixIndexTest, FindsABlockByEverythingBefore) {
  PrefixIndex index(8, 2);
  const Tokens first = {1, 2};
  const Tokens second = {3, 4};
  EXPECT_FALSE(index.Find(kSharedRoot, first).has_value());
  const PrefixId id = index.Insert(BlockId{5}, kSharedRoot, first, 7);
  ASSERT_TRUE(index.Find(kSharedRoot, first).has_value());
  EXPECT_EQ(index.Find(kSharedRoot, first)->block, BlockId{5});
  EXPECT_EQ(index.Find(kSharedRoot, first)->id, id);
  EXPECT_EQ(index.Find(kSharedRoot, first)->step, 7u);
  EXPECT_FALSE(index.Find(kSharedRoot, second).has_value());
  EXPECT_FALSE(index.Find(kSharedRoot + 1, first).has_value());
  EXPECT_FALSE(index.Find(id, first).has_value());
  // The same tokens elsewhere are something else.
  const PrefixId again = index.Insert(BlockId{2}, id, first, 8);
  EXPECT_NE(again, id);
  EXPECT_EQ(index.Find(id, first)->block, BlockId{2});
  EXPECT_EQ(index.Find(kSharedRoot, first)->block, BlockId{5});
}

TEST(PrefixIndexTest, WhatFollowsAnErasedBlockIsNotFoundAgain) {
  PrefixIndex index(4, 2);
  const PrefixId parent = index.Insert(BlockId{0}, kSharedRoot, Tokens{1, 2}, 1);
  index.Insert(BlockId{1}, parent, Tokens{3, 4}, 1);
  index.Erase(BlockId{0});
  EXPECT_FALSE(index.Contains(BlockId{0}));
  EXPECT_FALSE(index.Find(kSharedRoot, Tokens{1, 2}).has_value());
  // Even when the parent's tokens, and its block, come back.
  const PrefixId later = index.Insert(BlockId{0}, kSharedRoot, Tokens{1, 2}, 2);
  EXPECT_NE(later, parent);
  EXPECT_FALSE(index.Find(later, Tokens{3, 4}).has_value());
  EXPECT_TRUE(index.Contains(BlockId{1}));
}

// Against a map, with so few buckets that most are shared.
TEST(PrefixIndexTest, AgreesWithAMapWhateverComesAndGoes) {
  constexpr int kBlocks = 32;
  PrefixIndex index(kBlocks, 1);
  struct Held {
    PrefixId parent;
    Tokens tokens;
    PrefixId id;
  };
  std::map<int, Held> held;
  std::vector<PrefixId> parents = {kSharedRoot, kSharedRoot + 1};
  std::mt19937 random(1);
  for (int turn = 0; turn < 20000; ++turn) {
    const int block = static_cast<int>(random() % kBlocks);
    if (held.contains(block)) {
      index.Erase(BlockId{block});
      held.erase(block);
      continue;
    }
    const PrefixId parent = parents[random() % parents.size()];
    const Tokens tokens = {static_cast<TokenId>(random() % 5)};
    const auto there = std::find_if(held.begin(), held.end(), [&](const auto& entry) {
      return entry.second.parent == parent && entry.second.tokens == tokens;
    });
    const auto found = index.Find(parent, tokens);
    ASSERT_EQ(found.has_value(), there != held.end());
    if (found.has_value()) {
      ASSERT_EQ(found->block.value, there->first);
      ASSERT_EQ(found->id, there->second.id);
    } else {
      const PrefixId id = index.Insert(BlockId{block}, parent, tokens, 1);
      held[block] = {parent, tokens, id};
      if (parents.size() < 10) parents.push_back(id);
    }
  }
}

}  // namespace
}  // namespace ferrite

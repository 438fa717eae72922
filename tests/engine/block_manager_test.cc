#include "engine/block_manager.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace ferrite {
namespace {

constexpr Prefix kShared = RootPrefix(kSharedRoot);

TEST(BlockManagerTest, HandsOutEveryBlockOnce) {
  BlockManager blocks(5, 16);
  std::set<BlockId> seen;
  for (int i = 0; i < 5; ++i) {
    const auto block = blocks.Allocate();
    ASSERT_TRUE(block.has_value());
    EXPECT_GE(block->value, 0);
    EXPECT_LT(block->value, 5);
    EXPECT_TRUE(seen.insert(*block).second);
  }
  EXPECT_EQ(blocks.num_free(), 0);
  EXPECT_FALSE(blocks.Allocate().has_value());
}

TEST(BlockManagerTest, FreesWithTheLastReference) {
  BlockManager blocks(2, 16);
  const BlockId block = *blocks.Allocate();
  blocks.AddReference(block);
  blocks.Release(block);
  EXPECT_EQ(blocks.num_free(), 1);
  blocks.Release(block);
  EXPECT_EQ(blocks.num_free(), 2);
}

TEST(BlockManagerTest, RoundsTokensUpToBlocks) {
  const BlockManager blocks(1, 16);
  EXPECT_EQ(blocks.BlocksFor(0), 0);
  EXPECT_EQ(blocks.BlocksFor(1), 1);
  EXPECT_EQ(blocks.BlocksFor(16), 1);
  EXPECT_EQ(blocks.BlocksFor(17), 2);
}

TEST(BlockManagerTest, KeepsWhatAFreeBlockHoldsUntilItIsNeeded) {
  BlockManager blocks(3, 2);
  const std::vector<TokenId> first = {1, 2};
  const std::vector<TokenId> second = {3, 4};
  const BlockId a = *blocks.Allocate();
  const BlockId b = *blocks.Allocate();
  const Prefix id = blocks.AddPrefix(a, kShared, first, 1, /*keep=*/true);
  blocks.AddPrefix(b, id, second, 1, /*keep=*/true);
  blocks.Release(b);  // the end before the beginning
  blocks.Release(a);
  EXPECT_EQ(blocks.num_free(), 3);
  EXPECT_FALSE(blocks.is_referenced(a));
  ASSERT_TRUE(blocks.FindPrefix(kShared, first).has_value());
  blocks.AddReference(a);
  EXPECT_EQ(blocks.num_free(), 2);
  blocks.Release(a);

  const BlockId c = *blocks.Allocate();
  EXPECT_NE(c, a);
  EXPECT_NE(c, b) << "an empty block first";
  EXPECT_EQ(*blocks.Allocate(), b) << "then the one released first";
  EXPECT_TRUE(blocks.FindPrefix(kShared, first).has_value());
  EXPECT_FALSE(blocks.FindPrefix(id, second).has_value());
  EXPECT_EQ(*blocks.Allocate(), a);
  EXPECT_FALSE(blocks.FindPrefix(kShared, first).has_value());
  EXPECT_FALSE(blocks.Allocate().has_value());
}

TEST(BlockManagerTest, WhatIsNotKeptIsSharedWhileItIsReferenced) {
  BlockManager blocks(2, 2);
  const std::vector<TokenId> tokens = {1, 2};
  const BlockId a = *blocks.Allocate();
  const Prefix id = blocks.AddPrefix(a, RootPrefix(kRootBit + 9), tokens, 1, /*keep=*/false);
  EXPECT_EQ(blocks.FindPrefix(RootPrefix(kRootBit + 9), tokens)->prefix, id);
  blocks.Release(a);
  EXPECT_FALSE(blocks.FindPrefix(RootPrefix(kRootBit + 9), tokens).has_value());
  EXPECT_EQ(blocks.num_free(), 2);
}

TEST(BlockManagerTest, TheSameContentIsFoundOnce) {
  BlockManager blocks(2, 2);
  const std::vector<TokenId> tokens = {1, 2};
  const BlockId a = *blocks.Allocate();
  const BlockId b = *blocks.Allocate();
  const Prefix id = blocks.AddPrefix(a, kShared, tokens, 1, true);
  EXPECT_EQ(blocks.AddPrefix(b, kShared, tokens, 2, true), id);
  EXPECT_EQ(blocks.FindPrefix(kShared, tokens)->block, a);
  blocks.Release(b);
  EXPECT_TRUE(blocks.FindPrefix(kShared, tokens).has_value());
}

TEST(BlockManagerTest, ForgetsOnDemand) {
  BlockManager blocks(2, 2);
  const BlockId a = *blocks.Allocate();
  const BlockId b = *blocks.Allocate();
  blocks.AddPrefix(a, kShared, std::vector<TokenId>{1, 2}, 1, true);
  blocks.AddPrefix(b, kShared, std::vector<TokenId>{3, 4}, 1, true);
  blocks.Release(a);
  blocks.ForgetPrefixes();
  EXPECT_FALSE(blocks.FindPrefix(kShared, std::vector<TokenId>{1, 2}).has_value());
  EXPECT_FALSE(blocks.FindPrefix(kShared, std::vector<TokenId>{3, 4}).has_value());
  EXPECT_EQ(blocks.num_free(), 1);
  blocks.Release(b);
  EXPECT_EQ(blocks.num_free(), 2);
  EXPECT_TRUE(blocks.Allocate().has_value());
  EXPECT_TRUE(blocks.Allocate().has_value());
  EXPECT_FALSE(blocks.Allocate().has_value());
}

}  // namespace
}  // namespace ferrite

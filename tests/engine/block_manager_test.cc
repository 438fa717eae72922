#include "engine/block_manager.h"

#include <gtest/gtest.h>

#include <set>

namespace ferrite {
namespace {

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

}  // namespace
}  // namespace ferrite

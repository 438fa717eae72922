#include "engine/prefix_index.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

namespace ferrite {
namespace {

using Tokens = std::vector<TokenId>;

constexpr Prefix kShared = RootPrefix(kSharedRoot);

TEST(PrefixIndexTest, FindsABlockByEverythingBefore) {
  PrefixIndex index(8, 2);
  const Tokens first = {1, 2};
  const Tokens second = {3, 4};
  EXPECT_FALSE(index.Find(kShared, first).has_value());
  const Prefix id = index.Insert(BlockId{5}, kShared, first, 7);
  ASSERT_TRUE(index.Find(kShared, first).has_value());
  EXPECT_EQ(index.Find(kShared, first)->block, BlockId{5});
  EXPECT_EQ(index.Find(kShared, first)->prefix, id);
  EXPECT_EQ(index.Find(kShared, first)->step, 7u);
  EXPECT_FALSE(index.Find(kShared, second).has_value());
  EXPECT_FALSE(index.Find(RootPrefix(kSharedRoot + 1), first).has_value());
  EXPECT_FALSE(index.Find(id, first).has_value());
  // The same tokens elsewhere are something else.
  const Prefix again = index.Insert(BlockId{2}, id, first, 8);
  EXPECT_NE(again, id);
  EXPECT_EQ(index.Find(id, first)->block, BlockId{2});
  EXPECT_EQ(index.Find(kShared, first)->block, BlockId{5});
}

TEST(PrefixIndexTest, WhatFollowsAnErasedBlockIsNotFoundAgain) {
  PrefixIndex index(4, 2);
  const Prefix parent = index.Insert(BlockId{0}, kShared, Tokens{1, 2}, 1);
  index.Insert(BlockId{1}, parent, Tokens{3, 4}, 1);
  index.Erase(BlockId{0});
  EXPECT_FALSE(index.Contains(BlockId{0}));
  EXPECT_FALSE(index.Find(kShared, Tokens{1, 2}).has_value());
  // Even when the parent's tokens, and its block, come back.
  const Prefix later = index.Insert(BlockId{0}, kShared, Tokens{1, 2}, 2);
  EXPECT_NE(later, parent);
  EXPECT_FALSE(index.Find(later, Tokens{3, 4}).has_value());
  EXPECT_TRUE(index.Contains(BlockId{1}));
}

// A summary knows by hash what the index has, but for the end of a prompt.
TEST(PrefixIndexTest, KeepsItsSummary) {
  // Larger than the index: two hashes meet in one of its counters once in 100,000 runs.
  PrefixSummary summary(1 << 16, 2);
  PrefixIndex index(4, 2, &summary);
  const Tokens prompt = {1, 2, 3, 4, 5, 6};
  EXPECT_EQ(summary.CachedTokens(kSharedRoot, prompt), 0);
  const Prefix first = index.Insert(BlockId{0}, kShared, Tokens{1, 2}, 1);
  EXPECT_EQ(summary.CachedTokens(kSharedRoot, prompt), 2);
  const Prefix second = index.Insert(BlockId{3}, first, Tokens{3, 4}, 1);
  index.Insert(BlockId{1}, second, Tokens{5, 6}, 1);
  EXPECT_EQ(summary.CachedTokens(kSharedRoot, prompt), 4) << "the last token is always computed";
  EXPECT_EQ(summary.CachedTokens(kSharedRoot, {}), 0);
  index.Erase(BlockId{0});
  EXPECT_EQ(summary.CachedTokens(kSharedRoot, prompt), 0) << "what follows is not found";
}

// Full of blocks of others, it may take those of a prompt that nobody has for present now and then.
TEST(PrefixSummaryTest, IsSeldomWrongAndNeverTooLow) {
  constexpr int32_t kBlocks = 1 << 14;
  constexpr int32_t kSize = 4;
  PrefixSummary summary(kBlocks, kSize);
  PrefixIndex index(kBlocks, kSize, &summary);
  std::mt19937 random(1);
  const auto prompt = [&] {
    Tokens tokens(4 * kSize + 1);
    for (TokenId& token : tokens) token = static_cast<TokenId>(random() % 1000);
    return tokens;
  };
  std::vector<Tokens> held;
  for (int32_t block = 0; block < kBlocks; block += 4) {
    held.push_back(prompt());
    Prefix parent = kShared;
    for (int32_t i = 0; i < 4; ++i) {
      const auto tokens = std::span(held.back()).subspan(static_cast<size_t>(i) * kSize, kSize);
      parent = index.Insert(BlockId{block + i}, parent, tokens, 1);
    }
  }
  int64_t wrong_tokens = 0;
  for (const Tokens& tokens : held) {
    EXPECT_EQ(summary.CachedTokens(kSharedRoot, tokens), 4 * kSize);
    wrong_tokens += summary.CachedTokens(kSharedRoot, prompt());
    wrong_tokens += summary.CachedTokens(kSharedRoot + 1, tokens);
  }
  EXPECT_LT(wrong_tokens, static_cast<int64_t>(2 * held.size()) * kSize / 6);
  for (int32_t block = 0; block < kBlocks; ++block) index.Erase(BlockId{block});
  for (const Tokens& tokens : held) {
    EXPECT_EQ(summary.CachedTokens(kSharedRoot, tokens), 0);
  }
}

// Against a map, with so few buckets that most are shared.
TEST(PrefixIndexTest, AgreesWithAMapWhateverComesAndGoes) {
  constexpr int kBlocks = 32;
  PrefixIndex index(kBlocks, 1);
  struct Held {
    Prefix parent;
    Tokens tokens;
    Prefix id;
  };
  std::map<int, Held> held;
  std::vector<Prefix> parents = {kShared, RootPrefix(kSharedRoot + 1)};
  std::mt19937 random(1);
  for (int turn = 0; turn < 20000; ++turn) {
    const int block = static_cast<int>(random() % kBlocks);
    if (held.contains(block)) {
      index.Erase(BlockId{block});
      held.erase(block);
      continue;
    }
    const Prefix parent = parents[random() % parents.size()];
    const Tokens tokens = {static_cast<TokenId>(random() % 5)};
    const auto there = std::find_if(held.begin(), held.end(), [&](const auto& entry) {
      return entry.second.parent == parent && entry.second.tokens == tokens;
    });
    const auto found = index.Find(parent, tokens);
    ASSERT_EQ(found.has_value(), there != held.end());
    if (found.has_value()) {
      ASSERT_EQ(found->block.value, there->first);
      ASSERT_EQ(found->prefix, there->second.id);
    } else {
      const Prefix id = index.Insert(BlockId{block}, parent, tokens, 1);
      held[block] = {parent, tokens, id};
      if (parents.size() < 10) parents.push_back(id);
    }
  }
}

}  // namespace
}  // namespace ferrite

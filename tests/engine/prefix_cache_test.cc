// What requests leave in the KV cache for others, through the whole engine, against the fake
// device, which checks every KV read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/engine/engine_fixture.h"
#include "tests/testing/stream_reader.h"

namespace ferrite {
namespace {

using test::StreamReader;

constexpr int32_t kBlockSize = 4;

class PrefixCacheTest : public test::EngineFixture {
 protected:
  void SetUp() override {
    EngineFixture::SetUp();
    fake_.block_size = kBlockSize;
  }

  // Tokens that depend on `seed` from the first on.
  static std::vector<TokenId> Tokens(int32_t count, int32_t seed) {
    std::vector<TokenId> tokens;
    for (int32_t i = 0; i < count; ++i) tokens.push_back(1 + (seed * 37 + i * 11) % 500);
    return tokens;
  }
  static std::vector<TokenId> Join(std::vector<TokenId> first, const std::vector<TokenId>& second) {
    first.insert(first.end(), second.begin(), second.end());
    return first;
  }

  std::shared_ptr<StreamReader> Submit(const EngineRequest& request) {
    const auto reader = StreamReader::Create();
    const absl::Status status = engine_->Submit(request, reader->stream());
    EXPECT_TRUE(status.ok()) << status;
    return reader;
  }

  // Runs it to its end, and checks its tokens; how many of its prompt were cached.
  int32_t CachedTokens(const EngineRequest& request) {
    const auto reader = Submit(request);
    EXPECT_TRUE(reader->WaitForEnd());
    EXPECT_EQ(reader->tokens(), SoloTokens(request));
    ExpectIdle();
    return reader->completion().cached_tokens;
  }

  uint64_t hit_tokens() { return engine_->worker_stats(0).prefix_hit_tokens.value(); }
  uint64_t queried_tokens() { return engine_->worker_stats(0).prefix_queried_tokens.value(); }
};

TEST_F(PrefixCacheTest, APromptThatCameBeforeIsComputedFromItsLastBlockOn) {
  Start();
  EXPECT_EQ(CachedTokens(Request(Tokens(30, 1), 3)), 0);
  EXPECT_EQ(CachedTokens(Request(Tokens(30, 1), 3)), 28);
  EXPECT_EQ(CachedTokens(Request(Tokens(28, 1), 3)), 24) << "the last token is always computed";
  EXPECT_EQ(CachedTokens(Request(Join(Tokens(13, 1), Tokens(20, 2)), 3)), 12);
  EXPECT_EQ(CachedTokens(Request(Tokens(30, 3), 3)), 0);
  EXPECT_EQ(hit_tokens(), 64u);
  EXPECT_EQ(queried_tokens(), 30u + 30u + 28u + 33u + 30u);
}

TEST_F(PrefixCacheTest, TheNextTurnOfAConversationFindsTheAnswer) {
  Start();
  const EngineRequest first = Request(Tokens(20, 1), 21);
  EXPECT_EQ(CachedTokens(first), 0);
  // The last token of the answer was never fed to the model: 40 tokens are in the cache.
  const std::vector<TokenId> next = Join(Join(first.prompt, SoloTokens(first)), Tokens(5, 2));
  EXPECT_EQ(CachedTokens(Request(next, 2)), 40);
}

TEST_F(PrefixCacheTest, NothingAfterAStopIsShared) {
  fake_.pipeline_depth = 2;  // a step is in flight when the stop is seen
  Start();
  EngineRequest stopped = Request(Tokens(20, 1), 40);
  const std::vector<TokenId> output = SoloTokens(stopped);
  stopped.sampling.end_token_ids = {output[10]};
  stopped.sampling.min_new_tokens = 11;
  const auto reader = Submit(stopped);
  ASSERT_TRUE(reader->WaitForEnd());
  ASSERT_EQ(reader->tokens().size(), 11u);
  ExpectIdle();
  const std::vector<TokenId> whole = Join(stopped.prompt, output);
  EXPECT_LE(CachedTokens(Request(whole, 1)), 31);
  EXPECT_EQ(CachedTokens(Request(whole, 1)), 56) << "and then all but the last block";
}

TEST_F(PrefixCacheTest, RequestsInFlightShareAndWaitForEachOther) {
  fake_.num_blocks = 40;
  Start({.scheduler = {8, 16}, .admission = {}});
  backend_->HangAt(1);
  // 60 tokens in common are 15 blocks; six requests apart would need 17 each.
  std::vector<EngineRequest> requests;
  std::vector<std::shared_ptr<StreamReader>> readers;
  for (int i = 0; i < 6; ++i) {
    requests.push_back(Request(Join(Tokens(60, 1), Tokens(3, 10 + i)), 4));
    readers.push_back(Submit(requests.back()));
  }
  backend_->ReleaseHang();
  for (int i = 0; i < 6; ++i) {
    ASSERT_TRUE(readers[i]->WaitForEnd());
    EXPECT_EQ(readers[i]->tokens(), SoloTokens(requests[i]));
    EXPECT_EQ(readers[i]->completion().cached_tokens, i == 0 ? 0 : 60) << i;
  }
  EXPECT_EQ(engine_->load()[0].preemptions, 0u);
  ExpectIdle();
}

TEST_F(PrefixCacheTest, OptingOutNeitherTakesNorLeaves) {
  Start();
  EngineRequest apart = Request(Tokens(30, 1), 3);
  apart.cache_prompt = false;
  EXPECT_EQ(CachedTokens(apart), 0);
  EXPECT_EQ(CachedTokens(Request(Tokens(30, 1), 3)), 0) << "it left nothing";
  apart.id = "again";
  EXPECT_EQ(CachedTokens(apart), 0) << "it takes nothing";
  EXPECT_EQ(CachedTokens(Request(Tokens(30, 1), 3)), 28);
  EXPECT_EQ(queried_tokens(), 60u);
}

TEST_F(PrefixCacheTest, OtherSaltsDoNotShare) {
  Start();
  const auto salted = [&](const std::string& salt) {
    EngineRequest request = Request(Tokens(30, 1), 3);
    request.cache_salt = salt;
    return CachedTokens(request);
  };
  EXPECT_EQ(salted("a"), 0);
  EXPECT_EQ(salted("b"), 0);
  EXPECT_EQ(salted(""), 0);
  EXPECT_EQ(salted("a"), 28);
  EXPECT_EQ(salted("b"), 28);
  EXPECT_EQ(salted(""), 28);
}

TEST_F(PrefixCacheTest, CanBeSwitchedOffButForSamples) {
  EngineOptions options{.scheduler = {16, 64}, .admission = {}};
  options.prefix_caching = false;
  fake_.num_blocks = 24;
  Start(options);
  EXPECT_EQ(CachedTokens(Request(Tokens(30, 1), 3)), 0);
  EXPECT_EQ(CachedTokens(Request(Tokens(30, 1), 3)), 0);
  // Four samples of 12 blocks each do not fit apart.
  const EngineRequest request = Request(Tokens(40, 1), 8);
  std::vector<std::shared_ptr<StreamReader>> readers;
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < 4; ++i) {
    readers.push_back(StreamReader::Create());
    streams.push_back(readers.back()->stream());
  }
  ASSERT_TRUE(engine_->Submit(request, streams).ok());
  for (const auto& reader : readers) ASSERT_TRUE(reader->WaitForEnd());
  EXPECT_EQ(backend_->stats().largest_step_sequences, 4);
  EXPECT_EQ(engine_->load()[0].preemptions, 0u);
  ExpectIdle();
}

TEST_F(PrefixCacheTest, WhatMustBeComputedIs) {
  Start();
  EXPECT_EQ(CachedTokens(Request(Tokens(30, 1), 3)), 0);
  EngineRequest scored = Request(Tokens(30, 1), 3);
  scored.num_prompt_logprobs = 0;
  EXPECT_EQ(CachedTokens(scored), 0);
  EngineRequest mean = Request(Tokens(30, 1), 0);
  mean.pooling = Pooling::kMean;
  EXPECT_EQ(CachedTokens(mean), 0);
  EngineRequest last = Request(Tokens(30, 1), 0);
  last.pooling = Pooling::kLast;
  EXPECT_EQ(CachedTokens(last), 28) << "only the last position counts";
}

// Conversations that grow, share beginnings, are cancelled and preempted, in a pool that is too
// small for all of them: every answer is right, and every block comes back.
TEST_F(PrefixCacheTest, RandomConversationsAreRightAndLeakNothing) {
  uint64_t preemptions = 0;
  uint64_t hits = 0;
  for (int seed = 0; seed < 16; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    fake_.num_blocks = 32 + static_cast<int32_t>(random() % 64);
    fake_.pipeline_depth = 1 + seed % 2;
    Start({.scheduler = {6, 24}, .admission = {}});
    std::vector<std::vector<TokenId>> pasts = {Tokens(17, 1), Tokens(30, 2), {}};
    for (int round = 0; round < 6; ++round) {
      std::vector<EngineRequest> requests;
      std::vector<std::shared_ptr<StreamReader>> readers;
      std::vector<bool> cancelled;
      for (int i = 0; i < 8; ++i) {
        const std::vector<TokenId>& past = pasts[random() % pasts.size()];
        std::vector<TokenId> prompt = Join(
            past, Tokens(1 + static_cast<int32_t>(random() % 20), static_cast<int>(random() % 4)));
        prompt.resize(std::min<size_t>(prompt.size(), 100));
        requests.push_back(Request(std::move(prompt), 1 + static_cast<int32_t>(random() % 20)));
        requests.back().cache_prompt = random() % 5 != 0;
        requests.back().cache_salt = random() % 3 == 0 ? "salt" : "";
        readers.push_back(Submit(requests.back()));
        cancelled.push_back(random() % 6 == 0);
        if (cancelled.back()) readers.back()->stream()->Cancel();
      }
      for (size_t i = 0; i < requests.size(); ++i) {
        ASSERT_TRUE(readers[i]->WaitForEnd());
        if (cancelled[i]) continue;
        EXPECT_EQ(readers[i]->tokens(), SoloTokens(requests[i]));
        if (random() % 2 == 0) {
          pasts.push_back(Join(requests[i].prompt, readers[i]->tokens()));
        }
      }
      ExpectIdle();
    }
    preemptions += engine_->load()[0].preemptions;
    hits += hit_tokens();
    engine_.reset();
  }
  EXPECT_GT(preemptions, 0u);
  EXPECT_GT(hits, 1000u);
}

}  // namespace
}  // namespace ferrite

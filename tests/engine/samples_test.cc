// What one call makes of several sequences: samples that share a prompt's blocks, log-probabilities
// of prompt and output, and pooled vectors; against the fake device, which checks every KV read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "absl/strings/str_cat.h"
#include "tests/engine/engine_fixture.h"
#include "tests/testing/stream_reader.h"

namespace ferrite {
namespace {

using test::FakeLogprob;
using test::FakeTop;
using test::FakeVector;
using test::StreamReader;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr int32_t kBlockSize = 4;

class SamplesTest : public test::EngineFixture {
 protected:
  void SetUp() override {
    EngineFixture::SetUp();
    fake_.block_size = kBlockSize;
  }

  EngineRequest Request(int32_t prompt_tokens, int32_t max_new_tokens) {
    std::vector<TokenId> prompt;
    for (int32_t i = 0; i < prompt_tokens; ++i) {
      prompt.push_back(1 + ((requests_ + 1) * 37 + i * 11) % 500);
    }
    return EngineFixture::Request(std::move(prompt), max_new_tokens);
  }

  std::vector<std::shared_ptr<StreamReader>> Submit(const EngineRequest& request, int32_t n) {
    std::vector<std::shared_ptr<StreamReader>> readers;
    std::vector<std::shared_ptr<TokenStream>> streams;
    for (int32_t i = 0; i < n; ++i) {
      readers.push_back(StreamReader::Create());
      streams.push_back(readers.back()->stream());
    }
    const absl::Status status = engine_->Submit(request, streams);
    EXPECT_TRUE(status.ok()) << status;
    return readers;
  }
};

TEST_F(SamplesTest, SamplesFitWhereOnlyASharedPromptDoes) {
  // A prompt of 40 tokens has 9 full blocks before its last token. Four samples with 8 new tokens
  // need 12 blocks each: 48 apart, 9 + 4 * 3 = 21 together.
  fake_.num_blocks = 24;
  Start();
  const EngineRequest request = Request(40, 8);
  const auto readers = Submit(request, 4);
  for (const auto& reader : readers) {
    ASSERT_TRUE(reader->WaitForEnd());
    EXPECT_EQ(reader->tokens(), SoloTokens(request));
    EXPECT_EQ(reader->completion().prompt_tokens, 40);
  }
  EXPECT_EQ(engine_->load()[0].preemptions, 0u);
  EXPECT_EQ(backend_->stats().largest_step_sequences, 4);
  ExpectIdle();
}

TEST_F(SamplesTest, APromptWithoutAFullBlockIsNotWaitedFor) {
  Start();
  const EngineRequest request = Request(kBlockSize, 6);  // its last token is in the first block
  for (const auto& reader : Submit(request, 3)) {
    ASSERT_TRUE(reader->WaitForEnd());
    EXPECT_EQ(reader->tokens(), SoloTokens(request));
  }
  ExpectIdle();
}

TEST_F(SamplesTest, SamplesSurvivePreemptionAndTheEndOfTheOneTheyShareWith) {
  uint64_t preemptions = 0;
  for (int seed = 0; seed < 12; ++seed) {
    std::mt19937 random(seed);
    fake_.num_blocks = 32;
    fake_.pipeline_depth = 1 + seed % 2;
    Start({.scheduler = {6, 24}, .admission = {}});
    std::vector<EngineRequest> requests;
    std::vector<std::vector<std::shared_ptr<StreamReader>>> readers;
    std::vector<std::vector<bool>> cancelled;
    for (int i = 0; i < 8; ++i) {
      requests.push_back(Request(1 + static_cast<int32_t>(random() % 60),
                                 1 + static_cast<int32_t>(random() % 30)));
      readers.push_back(Submit(requests.back(), 1 + static_cast<int32_t>(random() % 5)));
      cancelled.emplace_back();
      for (const auto& reader : readers.back()) {
        cancelled.back().push_back(random() % 4 == 0);
        if (cancelled.back().back()) {
          reader->stream()->Cancel();
        }
      }
    }
    for (size_t i = 0; i < requests.size(); ++i) {
      for (size_t sample = 0; sample < readers[i].size(); ++sample) {
        ASSERT_TRUE(readers[i][sample]->WaitForEnd()) << "seed " << seed;
        if (!cancelled[i][sample]) {
          EXPECT_EQ(readers[i][sample]->tokens(), SoloTokens(requests[i])) << "seed " << seed;
        }
      }
    }
    ExpectIdle();
    preemptions += engine_->load()[0].preemptions;
    engine_.reset();
  }
  EXPECT_GT(preemptions, 0u);
}

TEST_F(SamplesTest, AnAbortEndsEverySample) {
  Start();
  backend_->HangAt(3);
  const EngineRequest request = Request(10, 50);
  const auto readers = Submit(request, 3);
  ASSERT_TRUE(engine_->Abort(request.id).ok());
  backend_->ReleaseHang();
  for (const auto& reader : readers) {
    ASSERT_TRUE(reader->WaitForEnd());
    EXPECT_EQ(reader->completion().reason, FinishReason::kAborted);
  }
  ExpectIdle();
}

TEST_F(SamplesTest, ACallIsTakenWholeOrNotAtAll) {
  Start({.scheduler = {16, 64}, .admission = {.max_waiting_requests = 3}});
  backend_->HangAt(1);
  const auto first = Submit(Request(3, 5), 1);
  const Clock::time_point limit = Clock::now() + std::chrono::seconds(20);
  // Until two steps are outstanding, so that the worker waits and takes nothing more.
  while (backend_->stats().most_outstanding < 2 && Clock::now() < limit) {
  }
  const auto two = Submit(Request(10, 5), 2);
  std::vector<std::shared_ptr<TokenStream>> streams(
      2, std::make_shared<TokenStream>(TokenStream::Mode::kEndOnly));
  const absl::Status refused = engine_->Submit(Request(10, 5), streams);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("2 requests wait, this call has 2"));
  EXPECT_EQ(engine_->num_in_flight(), 2);
  streams.resize(4, streams[0]);
  const absl::Status never = engine_->Submit(Request(10, 5), streams);
  EXPECT_EQ(never.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(never.message()), HasSubstr("4 requests"));
  backend_->ReleaseHang();
  ASSERT_TRUE(first[0]->WaitForEnd());
  ASSERT_TRUE(two[1]->WaitForEnd());
  ASSERT_TRUE(two[0]->WaitForEnd());
  ExpectIdle();
}

// Everything a stream has given, log-probabilities included.
OutputDelta TakeAll(TokenStream& stream) {
  OutputDelta all;
  const Clock::time_point limit = Clock::now() + std::chrono::seconds(60);
  OutputDelta delta;
  bool ended = false;
  while (!ended && Clock::now() < limit) {
    ended = stream.Take(&delta);
    all.token_ids.insert(all.token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
    for (int32_t t = 0; t < delta.logprobs.size(); ++t) {
      all.logprobs.Append(delta.logprobs[t].own, delta.logprobs[t].top);
    }
    if (!delta.prompt_logprobs.empty()) {
      EXPECT_TRUE(all.prompt_logprobs.empty()) << "twice";
      all.prompt_logprobs = delta.prompt_logprobs;
    }
    all.embedding = delta.embedding;
  }
  EXPECT_TRUE(ended);
  return all;
}

void ExpectFakeTop(const LogprobView& logprobs, TokenId source, int32_t num_top,
                   int32_t vocab_size) {
  ASSERT_EQ(logprobs.top.size(), static_cast<size_t>(num_top));
  for (int32_t i = 0; i < num_top; ++i) {
    EXPECT_EQ(logprobs.top[i].id, FakeTop(source, i, vocab_size).id);
    EXPECT_EQ(logprobs.top[i].logprob, FakeTop(source, i, vocab_size).logprob);
  }
}

// Chunked, preempted and beside others: a position's log-probability is what its context says.
TEST_F(SamplesTest, LogprobsOfPromptAndOutputAreThoseOfTheirContexts) {
  fake_.num_blocks = 18;
  Start({.scheduler = {8, 16}, .admission = {}});
  std::vector<EngineRequest> requests;
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int32_t i = 0; i < 6; ++i) {
    requests.push_back(Request(30 + i, 12));
    requests.back().sampling.num_logprobs = i % 3 - 1;
    requests.back().num_prompt_logprobs = i % 2 == 0 ? i : -1;
    streams.push_back(std::make_shared<TokenStream>(TokenStream::Mode::kEveryOutput));
    ASSERT_TRUE(engine_->Submit(requests.back(), streams.back()).ok());
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(i);
    const OutputDelta output = TakeAll(*streams[i]);
    std::vector<TokenId> context = requests[i].prompt;
    const int32_t num_prompt = static_cast<int32_t>(context.size());
    const int32_t prompt_top = requests[i].num_prompt_logprobs;
    ASSERT_EQ(output.prompt_logprobs.size(), prompt_top < 0 ? 0 : num_prompt - 1);
    for (int32_t t = 0; t < output.prompt_logprobs.size(); ++t) {
      const TokenId source = fake_.source(std::span(context).first(t + 1));
      EXPECT_EQ(output.prompt_logprobs[t].own, FakeLogprob(source, context[t + 1])) << t;
      ExpectFakeTop(output.prompt_logprobs[t], source, prompt_top, fake_.vocab_size);
    }
    const int32_t top = requests[i].sampling.num_logprobs;
    ASSERT_EQ(output.logprobs.size(), top < 0 ? 0 : 12);
    for (int32_t t = 0; t < output.logprobs.size(); ++t) {
      const TokenId source = fake_.source(context);
      EXPECT_EQ(output.logprobs[t].own, FakeLogprob(source, output.token_ids[t]));
      ExpectFakeTop(output.logprobs[t], source, top, fake_.vocab_size);
      context.push_back(output.token_ids[t]);
    }
  }
  EXPECT_GT(engine_->load()[0].preemptions, 0u);
  ExpectIdle();
}

TEST_F(SamplesTest, AStepScoresNoMoreThanItsShare) {
  fake_.num_blocks = 512;
  fake_.max_step_tokens = 1024;
  fake_.max_sequence_length = 1024;
  Start({.scheduler = {8, 1024}, .admission = {}});
  EngineRequest request = Request(700, 2);
  request.num_prompt_logprobs = 0;
  const auto stream = std::make_shared<TokenStream>(TokenStream::Mode::kEveryOutput);
  ASSERT_TRUE(engine_->Submit(request, stream).ok());
  EXPECT_EQ(TakeAll(*stream).prompt_logprobs.size(), 699);
  EXPECT_EQ(backend_->stats().largest_step_tokens, 256);
  ExpectIdle();
}

TEST_F(SamplesTest, OnlyTheFirstSampleHasThePromptsLogprobs) {
  Start();
  EngineRequest request = Request(20, 4);
  request.num_prompt_logprobs = 0;
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < 3; ++i) {
    streams.push_back(std::make_shared<TokenStream>(TokenStream::Mode::kEndOnly));
  }
  ASSERT_TRUE(engine_->Submit(request, streams).ok());
  EXPECT_EQ(TakeAll(*streams[0]).prompt_logprobs.size(), 19);
  EXPECT_EQ(TakeAll(*streams[1]).prompt_logprobs.size(), 0);
  EXPECT_EQ(TakeAll(*streams[2]).prompt_logprobs.size(), 0);
  ExpectIdle();
}

TEST_F(SamplesTest, VectorsAreThoseOfTheirPromptsBesideGenerations) {
  fake_.num_blocks = 40;
  Start({.scheduler = {8, 16}, .admission = {}});
  const EngineRequest generation = Request(30, 40);
  const auto readers = Submit(generation, 2);
  std::vector<EngineRequest> inputs;
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int32_t i = 0; i < 20; ++i) {
    inputs.push_back(Request(1 + i * 3, 0));
    inputs.back().id = "vectors";
    inputs.back().pooling = i % 2 == 0 ? Pooling::kLast : Pooling::kMean;
    streams.push_back(std::make_shared<TokenStream>(TokenStream::Mode::kEndOnly));
  }
  ASSERT_TRUE(engine_->SubmitAll(inputs, streams).ok());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const OutputDelta output = TakeAll(*streams[i]);
    const TokenId source = fake_.source(inputs[i].prompt);
    EXPECT_THAT(output.embedding,
                ElementsAreArray(FakeVector(inputs[i].prompt, source, inputs[i].pooling)));
    EXPECT_TRUE(output.token_ids.empty());
    EXPECT_TRUE(streams[i]->completion().status.ok()) << streams[i]->completion().status;
    EXPECT_EQ(streams[i]->completion().prompt_tokens, 1 + static_cast<int32_t>(i) * 3);
    EXPECT_EQ(streams[i]->completion().completion_tokens, 0);
  }
  for (const auto& reader : readers) {
    ASSERT_TRUE(reader->WaitForEnd());
    EXPECT_EQ(reader->tokens(), SoloTokens(generation));
  }
  ExpectIdle();
}

TEST_F(SamplesTest, ABadInputOfACallIsNamed) {
  Start();
  std::vector<EngineRequest> inputs = {Request(3, 0), Request(200, 0)};
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (EngineRequest& input : inputs) {
    input.id = "one";
    input.pooling = Pooling::kLast;
    streams.push_back(std::make_shared<TokenStream>(TokenStream::Mode::kEndOnly));
  }
  const absl::Status status = engine_->SubmitAll(inputs, streams);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()),
            "input 1: the input has 200 tokens; the context has room for 128");
  EXPECT_EQ(engine_->num_in_flight(), 0);
}

}  // namespace
}  // namespace ferrite

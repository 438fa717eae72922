// Which of two workers gets a request.
#include "engine/worker_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>

#include "tests/engine/engine_fixture.h"
#include "tests/testing/stream_reader.h"

namespace ferrite {
namespace {

using test::StreamReader;

// Of a prompt of 41 tokens that a worker has had, it need not compute 40 again.
constexpr int32_t kPromptTokens = 41;
constexpr int32_t kCachedTokens = 40;

class WorkerChoiceTest : public test::EngineFixture {
 protected:
  // What is cached is estimated by hashes that differ from run to run: with so many blocks, and as
  // few of them in use, no estimate is too high.
  WorkerChoiceTest() { fake_.num_blocks = 1 << 16; }

  void Start(EngineOptions options = {.scheduler = {16, 64}, .admission = {}}) {
    fake_.pipeline_depth = 1;
    std::vector<std::unique_ptr<Backend>> backends;
    for (int i = 0; i < 2; ++i) {
      fake_.before_wait = [this, i] { ++waits_.at(i); };
      auto fake = std::make_unique<test::FakeBackend>(fake_);
      fakes_.at(i) = fake.get();
      backends.push_back(std::move(fake));
    }
    auto engine = Engine::Create(options, tokenizer_.get(), std::move(backends));
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  void TearDown() override {
    GoOn();
    for (test::FakeBackend* fake : fakes_) {
      EXPECT_THAT(fake->stats().problems, ::testing::IsEmpty());
    }
  }

  static std::vector<TokenId> Prompt(int32_t seed, int32_t length = kPromptTokens) {
    std::vector<TokenId> tokens;
    for (int32_t i = 0; i < length; ++i) tokens.push_back(1 + (seed * 37 + i * 11) % 500);
    return tokens;
  }

  std::array<int64_t, 2> Outstanding() const {
    const std::vector<WorkerLoad> load = engine_->load();
    return {load[0].tokens_outstanding, load[1].tokens_outstanding};
  }

  // Submits it; the worker that got it. Of workers that stand still.
  int Choice(const EngineRequest& request) {
    const auto before = Outstanding();
    readers_.push_back(StreamReader::Create());
    const absl::Status status = engine_->Submit(request, readers_.back()->stream());
    EXPECT_TRUE(status.ok()) << status;
    return Outstanding()[0] > before[0] ? 0 : 1;
  }

  // Each worker has a short request to wait for: what comes now stays in its queue.
  void StandStill() {
    for (int i = 0; i < 2; ++i) {
      const int waits = waits_.at(i);
      fakes_.at(i)->HangAt(1);
      ASSERT_EQ(Choice(Request({7}, 1)), i);
      const Clock::time_point limit = Clock::now() + std::chrono::seconds(10);
      while (waits_.at(i) == waits && Clock::now() < limit) {
      }
      ASSERT_GT(waits_.at(i), waits);
    }
  }
  void GoOn() {
    for (test::FakeBackend* fake : fakes_) {
      fake->ReleaseHang();
    }
    for (const auto& reader : readers_) {
      ASSERT_TRUE(reader->WaitForEnd());
    }
    readers_.clear();
  }

  // Has worker 1 answer the request; then both stand still, equally loaded.
  void LetTheSecondHave(const EngineRequest& request) {
    StandStill();
    ASSERT_EQ(Choice(Request({7}, 1)), 0);
    ASSERT_EQ(Choice(request), 1);
    GoOn();
    ASSERT_EQ(Outstanding(), (std::array<int64_t, 2>{0, 0}));
    StandStill();
  }

  std::array<test::FakeBackend*, 2> fakes_{};
  std::array<std::atomic<int>, 2> waits_{};  // steps that the worker has begun to wait for
  std::vector<std::shared_ptr<StreamReader>> readers_;
};

TEST_F(WorkerChoiceTest, APromptGoesToTheWorkerThatHasIt) {
  Start();
  LetTheSecondHave(Request(Prompt(1), 1));
  EXPECT_EQ(Choice(Request(Prompt(1), 1)), 1);
}

TEST_F(WorkerChoiceTest, APromptThatNobodyHasGoesToTheLeastLoaded) {
  Start();
  LetTheSecondHave(Request(Prompt(1), 1));
  EXPECT_EQ(Choice(Request(Prompt(2), 9)), 0);
  EXPECT_EQ(Choice(Request(Prompt(3), 1)), 1);
}

TEST_F(WorkerChoiceTest, LessWaitingForItThanItSavesIsWorthIt) {
  Start();
  LetTheSecondHave(Request(Prompt(1), 1));
  ASSERT_EQ(Choice(Request({7}, 59)), 0);
  ASSERT_EQ(Choice(Request({7}, 59 + kCachedTokens - 1)), 1);
  EXPECT_EQ(Choice(Request(Prompt(1), 1)), 1);
}

TEST_F(WorkerChoiceTest, MoreWaitingForItThanItSavesIsNot) {
  Start();
  LetTheSecondHave(Request(Prompt(1), 1));
  ASSERT_EQ(Choice(Request({7}, 59)), 0);
  ASSERT_EQ(Choice(Request({7}, 59 + kCachedTokens + 1)), 1);
  EXPECT_EQ(Choice(Request(Prompt(1), 1)), 0);
}

TEST_F(WorkerChoiceTest, ThoseWhoDoNotShareAreNotSentToWhatOthersLeft) {
  Start();
  LetTheSecondHave(Request(Prompt(1), 1));
  EngineRequest salted = Request(Prompt(1), 1);
  salted.cache_salt = "salt";
  EngineRequest apart = Request(Prompt(1), 1);
  apart.cache_prompt = false;
  EngineRequest scored = Request(Prompt(1), 1);
  scored.num_prompt_logprobs = 0;
  for (const EngineRequest& request : {salted, apart, scored}) {
    EXPECT_EQ(Choice(request), 0);
    EXPECT_EQ(Choice(Request(Prompt(2), 1)), 1) << "as much for the other";
  }
}

TEST_F(WorkerChoiceTest, ThoseOfOneSaltShare) {
  Start();
  EngineRequest salted = Request(Prompt(1), 1);
  salted.cache_salt = "salt";
  LetTheSecondHave(salted);
  salted.id = "again";
  EXPECT_EQ(Choice(salted), 1);
}

TEST_F(WorkerChoiceTest, WhatHasMadeRoomForOthersIsNotHeld) {
  fake_.num_blocks = 32;
  Start();
  LetTheSecondHave(Request(Prompt(1), 1));
  ASSERT_EQ(Choice(Request({7}, 100)), 0);
  EngineRequest whole_pool = Request(Prompt(2, 64), 64);
  whole_pool.cache_prompt = false;  // leaves nothing that could be taken for the first prompt's
  ASSERT_EQ(Choice(whole_pool), 1);
  GoOn();
  StandStill();
  EXPECT_EQ(Choice(Request(Prompt(1), 1)), 0);
}

// What comes at once, and shares all of its prompt, is spread by what is outstanding.
TEST_F(WorkerChoiceTest, OnePrefixDoesNotPileUpOnOneWorker) {
  Start();
  LetTheSecondHave(Request(Prompt(1), 1));
  std::array<int, 2> chosen{};
  for (int i = 0; i < 64; ++i) {
    ++chosen.at(Choice(Request(Prompt(1), 9)));
  }
  EXPECT_GE(chosen[0], 31);
  EXPECT_GE(chosen[1], 31);
}

TEST_F(WorkerChoiceTest, WhatIsCachedIsNotOutstandingOnceARequestHasStarted) {
  Start();
  LetTheSecondHave(Request(Prompt(1), 1));
  GoOn();
  fakes_[1]->HangAt(1);
  ASSERT_EQ(Choice(Request(Prompt(1), 20)), 1);
  const Clock::time_point limit = Clock::now() + std::chrono::seconds(10);
  while (Outstanding()[1] > kPromptTokens - kCachedTokens + 20 && Clock::now() < limit) {
  }
  EXPECT_EQ(Outstanding()[1], kPromptTokens - kCachedTokens + 20);
  GoOn();
  EXPECT_EQ(Outstanding()[1], 0);
}

TEST_F(WorkerChoiceTest, AFailedWorkerIsNeverChosen) {
  Start();
  LetTheSecondHave(Request(Prompt(1), 1));
  fakes_[1]->FailWaitAt(1);
  GoOn();
  ASSERT_TRUE(engine_->load()[1].failed);
  for (int i = 0; i < 3; ++i) {
    const auto reader = StreamReader::Create();
    ASSERT_TRUE(engine_->Submit(Request(Prompt(1), 30), reader->stream()).ok());
    ASSERT_TRUE(reader->WaitForEnd());
    EXPECT_TRUE(reader->completion().status.ok()) << reader->completion().status;
  }
}

TEST_F(WorkerChoiceTest, ARequestGoesWhereTheQueueHasRoom) {
  Start({.scheduler = {1, 64}, .admission = {.max_waiting_requests = 1}});
  LetTheSecondHave(Request(Prompt(1), 1));
  ASSERT_EQ(Choice(Request(Prompt(1), 1)), 1);
  EXPECT_TRUE(engine_->CheckRoom().ok());
  EXPECT_EQ(Choice(Request(Prompt(1, 5), 100)), 0);
  EXPECT_EQ(engine_->CheckRoom().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(engine_->Submit(Request({5}, 1), StreamReader::Create()->stream()).code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace ferrite

#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/engine/engine_fixture.h"
#include "tests/testing/stream_reader.h"

namespace ferrite {
namespace {

using test::StreamReader;
using ::testing::HasSubstr;

using EngineTest = test::EngineFixture;

TEST_F(EngineTest, GeneratesToTheLengthLimit) {
  Start();
  const EngineRequest request = Request({1, 400, 401}, 20);
  const auto reader = StreamReader::Create();
  ASSERT_TRUE(engine_->Submit(request, reader->stream()).ok());
  ASSERT_TRUE(reader->WaitForEnd());
  EXPECT_EQ(reader->tokens(), SoloTokens(request));
  EXPECT_EQ(reader->completion().reason, FinishReason::kLength);
  EXPECT_EQ(reader->completion().prompt_tokens, 3);
  EXPECT_EQ(reader->completion().completion_tokens, 20);
  EXPECT_GT(reader->completion().time_to_first_token_seconds, 0);
  ExpectIdle();
  EXPECT_EQ(backend_->stats().most_outstanding, 2);
}

TEST_F(EngineTest, TextIsThatOfTheTokensAfterThePrompt) {
  Start();
  const EngineRequest request = Request({1, 400, 401}, 20);
  const auto reader = StreamReader::Create();
  ASSERT_TRUE(engine_->Submit(request, reader->stream()).ok());
  ASSERT_TRUE(reader->WaitForEnd());
  std::vector<TokenId> all = request.prompt;
  for (const TokenId token : reader->tokens()) {
    all.push_back(token);
  }
  EXPECT_EQ(*tokenizer_->Decode(request.prompt, true) + reader->text(),
            *tokenizer_->Decode(all, true));
}

TEST_F(EngineTest, RefusesWhatCanNeverRun) {
  fake_.num_blocks = 10;  // of 4 tokens: less than max_sequence_length
  Start();
  EXPECT_EQ(engine_->context_length(), 40);
  const auto refuse = [&](EngineRequest request, const std::string& message) {
    const auto reader = StreamReader::Create();
    const absl::Status status = engine_->Submit(std::move(request), reader->stream());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  };
  refuse(Request({}, 1), "the prompt has no tokens");
  refuse(Request({1, 512}, 1), "prompt token 1 is 512; the vocabulary has ids 0 to 511");
  refuse(Request({-1}, 1), "prompt token 0 is -1");
  refuse(Request(std::vector<TokenId>(40, 5), 1), "the prompt has 40 tokens; the context of 40");
  refuse(Request({5}, 40),
         "max_new_tokens is 40; with a prompt of 1 tokens in a context of 40 it "
         "must be from 1 to 39");
  refuse(Request({5}, 0), "max_new_tokens is 0");
  EngineRequest late = Request({5}, 1);
  late.deadline = Clock::now() - std::chrono::seconds(1);
  const auto reader = StreamReader::Create();
  EXPECT_EQ(engine_->Submit(late, reader->stream()).code(), absl::StatusCode::kDeadlineExceeded);
  ExpectIdle();
}

TEST_F(EngineTest, ServesARequestAsLongAsTheWholePool) {
  fake_.num_blocks = 10;
  Start();
  const EngineRequest request = Request(std::vector<TokenId>(30, 5), 10);
  const auto reader = StreamReader::Create();
  ASSERT_TRUE(engine_->Submit(request, reader->stream()).ok());
  ASSERT_TRUE(reader->WaitForEnd());
  EXPECT_EQ(reader->tokens(), SoloTokens(request));
  ExpectIdle();
}

TEST_F(EngineTest, BoundsTheQueueByRequestsAndByTokens) {
  Start({.scheduler = {1, 64}, .admission = {.max_waiting_requests = 2, .max_waiting_tokens = 50}});
  backend_->HangAt(1);
  const auto running = StreamReader::Create();
  ASSERT_TRUE(engine_->Submit(Request({5}, 10), running->stream()).ok());
  while (engine_->load()[0].requests_waiting > 0) {
  }
  const auto first = StreamReader::Create();
  const auto second = StreamReader::Create();
  const auto third = StreamReader::Create();
  absl::Status full = engine_->Submit(Request(std::vector<TokenId>(51, 5), 1), first->stream());
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("max_waiting_tokens is 50"));
  ASSERT_TRUE(engine_->Submit(Request({5}, 10), first->stream()).ok());
  EXPECT_TRUE(engine_->CheckRoom().ok());
  ASSERT_TRUE(engine_->Submit(Request({5}, 10), second->stream()).ok());
  EXPECT_EQ(engine_->CheckRoom().code(), absl::StatusCode::kResourceExhausted);
  full = engine_->Submit(Request({5}, 10), third->stream());
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("scheduler.max_waiting is 2"));
  backend_->ReleaseHang();
  for (const auto& reader : {running, first, second}) {
    ASSERT_TRUE(reader->WaitForEnd());
    EXPECT_TRUE(reader->completion().status.ok());
  }
  ExpectIdle();
}

TEST_F(EngineTest, RefusesASecondRequestWithAnIdInFlight) {
  Start();
  backend_->HangAt(1);
  const EngineRequest request = Request({5}, 10);
  const auto reader = StreamReader::Create();
  ASSERT_TRUE(engine_->Submit(request, reader->stream()).ok());
  const absl::Status status = engine_->Submit(request, StreamReader::Create()->stream());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("request_id is 'r1'"));
  EXPECT_EQ(engine_->Abort("nobody").code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(engine_->Abort("r1").ok());
  backend_->ReleaseHang();
  ASSERT_TRUE(reader->WaitForEnd());
  EXPECT_EQ(reader->completion().reason, FinishReason::kAborted);
  ExpectIdle();
}

TEST_F(EngineTest, FailsItsRequestsWhenTheBackendFails) {
  for (const bool at_launch : {true, false}) {
    Start();
    at_launch ? backend_->FailLaunchAt(4) : backend_->FailWaitAt(4);
    const auto reader = StreamReader::Create();
    ASSERT_TRUE(engine_->Submit(Request({5}, 50), reader->stream()).ok());
    ASSERT_TRUE(reader->WaitForEnd());
    EXPECT_EQ(reader->completion().status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(reader->completion().status.message()), HasSubstr("fake device"));
    EXPECT_EQ(engine_->Submit(Request({5}, 5), StreamReader::Create()->stream()).code(),
              absl::StatusCode::kUnavailable);
    EXPECT_TRUE(engine_->load()[0].failed);
    EXPECT_EQ(engine_->num_in_flight(), 0);
    engine_.reset();
  }
}

TEST_F(EngineTest, ReportsTheAgeOfAStepThatHangs) {
  Start();
  backend_->HangAt(3);
  const auto reader = StreamReader::Create();
  EXPECT_EQ(engine_->load()[0].step_age_seconds, 0);
  ASSERT_TRUE(engine_->Submit(Request({5}, 50), reader->stream()).ok());
  const Clock::time_point limit = Clock::now() + std::chrono::seconds(10);
  while (engine_->load()[0].step_age_seconds < 0.05 && Clock::now() < limit) {
  }
  EXPECT_GE(engine_->load()[0].step_age_seconds, 0.05);
  backend_->ReleaseHang();
  ASSERT_TRUE(reader->WaitForEnd());
  ExpectIdle();
  // What was launched ahead of the last token is still waited for after the blocks are free.
  while (engine_->load()[0].step_age_seconds > 0 && Clock::now() < limit) {
  }
  EXPECT_EQ(engine_->load()[0].step_age_seconds, 0);
}

TEST_F(EngineTest, DrainsAndThenEndsWhatIsLeft) {
  fake_.step_time = std::chrono::milliseconds(2);
  Start();
  const auto reader = StreamReader::Create();
  ASSERT_TRUE(engine_->Submit(Request({5}, 20), reader->stream()).ok());
  engine_->CloseAdmission();
  EXPECT_EQ(engine_->CheckRoom().code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE(reader->WaitForEnd());
  EXPECT_EQ(reader->tokens().size(), 20u);

  engine_.reset();
  Start();
  const auto cut = StreamReader::Create();
  ASSERT_TRUE(engine_->Submit(Request({5}, 100), cut->stream()).ok());
  ASSERT_TRUE(cut->WaitForTokens(3));
  engine_.reset();
  ASSERT_TRUE(cut->WaitForEnd());
  EXPECT_EQ(cut->completion().status.code(), absl::StatusCode::kUnavailable);
}

// Random requests of all sizes come, are cancelled, aborted, run late and hit stops, over a pool
// that holds a fraction of them: whoever survives gets exactly the tokens it gets alone.
class EngineStormTest : public EngineTest, public ::testing::WithParamInterface<int> {};

TEST_P(EngineStormTest, SurvivorsGetTheirSoloTokensAndNothingLeaks) {
  std::mt19937 random(GetParam());
  fake_.pipeline_depth = 1 + GetParam() % 2;
  fake_.num_blocks = 32 + static_cast<int32_t>(random() % 64);
  fake_.step_time = std::chrono::microseconds(random() % 200);
  Start({.scheduler = {1 + static_cast<int32_t>(random() % 16),
                       16 + static_cast<int32_t>(random() % 48)},
         .admission = {.max_waiting_requests = 1000}});
  struct Client {
    EngineRequest request;
    std::shared_ptr<StreamReader> reader;
    bool disturbed = false;
  };
  std::vector<Client> clients;
  for (int i = 0; i < 120; ++i) {
    std::vector<TokenId> prompt(1 + random() % 60);
    for (TokenId& token : prompt) {
      token = static_cast<TokenId>(random() % 512);
    }
    Client client{Request(prompt, 1 + static_cast<int32_t>(random() % 60)), StreamReader::Create()};
    client.request.priority = static_cast<int32_t>(random() % 3);
    for (int end = 0; end < 6; ++end) {
      client.request.sampling.end_token_ids.push_back(static_cast<TokenId>(random() % 512));
    }
    client.request.sampling.min_new_tokens = static_cast<int32_t>(random() % 5);
    if (random() % 8 == 0) {
      client.disturbed = true;
      client.request.deadline = Clock::now() + std::chrono::milliseconds(1 + random() % 20);
    }
    const absl::Status status = engine_->Submit(client.request, client.reader->stream());
    if (status.ok()) {
      clients.push_back(client);
    } else {
      EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    }
    if (random() % 4 == 0) {
      Client& victim = clients[random() % clients.size()];
      victim.disturbed = true;
      random() % 2 ? victim.reader->stream()->Cancel() : victim.reader->stream()->Abort();
    }
  }
  for (Client& client : clients) {
    ASSERT_TRUE(client.reader->WaitForEnd()) << client.request.id;
    std::vector<TokenId> expected = SoloTokens(client.request);
    const std::vector<TokenId> tokens = client.reader->tokens();
    EXPECT_EQ(client.reader->completion().completion_tokens, static_cast<int32_t>(tokens.size()));
    if (client.disturbed) {
      ASSERT_LE(tokens.size(), expected.size());
      expected.resize(tokens.size());
    }
    EXPECT_EQ(tokens, expected) << client.request.id;
  }
  ExpectIdle();
  const auto stats = backend_->stats();
  EXPECT_LE(stats.largest_step_tokens, engine_->options().scheduler.max_step_tokens);
  EXPECT_LE(stats.largest_step_sequences, engine_->options().scheduler.max_running);
}

INSTANTIATE_TEST_SUITE_P(Seeds, EngineStormTest, ::testing::Range(0, 12));

}  // namespace
}  // namespace ferrite

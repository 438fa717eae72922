// What becomes of requests when a worker's backend fails or hangs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "engine/engine.h"
#include "tests/testing/fake_backend.h"
#include "tests/testing/stream_reader.h"

namespace ferrite {
namespace {

using test::FakeBackend;
using test::FakeBackendOptions;
using test::StreamReader;
using ::testing::AllOf;
using ::testing::HasSubstr;

class WorkerFaultTest : public ::testing::Test {
 protected:
  void Start(size_t num_workers, double stuck_step_seconds = 60) {
    auto tokenizer = Tokenizer::Load(std::string(FERRITE_SOURCE_DIR) + "/models/stories260k");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    std::vector<std::unique_ptr<Backend>> backends;
    for (size_t i = 0; i < num_workers; ++i) {
      auto backend = std::make_unique<FakeBackend>(fake_);
      fakes_.push_back(backend.get());
      backends.push_back(std::move(backend));
    }
    EngineOptions options{.scheduler = {16, 64}, .admission = {}};
    options.stuck_step_seconds = stuck_step_seconds;
    auto engine = Engine::Create(options, tokenizer_.get(), std::move(backends));
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  std::shared_ptr<StreamReader> Submit(int32_t max_new_tokens) {
    EngineRequest request;
    request.id = absl::StrCat("r", ++requests_);
    request.prompt = {5};
    request.max_new_tokens = max_new_tokens;
    const auto reader = StreamReader::Create();
    submitted_ = engine_->Submit(std::move(request), reader->stream());
    return reader;
  }

  template <typename Condition>
  bool Becomes(Condition condition) {
    const Clock::time_point limit = Clock::now() + std::chrono::seconds(20);
    while (!condition() && Clock::now() < limit) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return condition();
  }

  FakeBackendOptions fake_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<FakeBackend*> fakes_;
  std::unique_ptr<Engine> engine_;
  absl::Status submitted_;
  int requests_ = 0;
};

TEST_F(WorkerFaultTest, AFailedWorkerSaysWhereAndIsNotChosenAgain) {
  Start(2);
  fakes_[0]->FailWaitAt(1);
  const auto victim = Submit(50);
  ASSERT_TRUE(submitted_.ok()) << submitted_;
  ASSERT_TRUE(victim->WaitForEnd());
  EXPECT_EQ(victim->completion().status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(victim->completion().status.message()),
              AllOf(HasSubstr("the worker on fake failed at step"),
                    HasSubstr("INTERNAL: the fake device broke")));
  EXPECT_EQ(engine_->WorkerHealth(0).code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(engine_->WorkerHealth(0).message()), HasSubstr("the fake device broke"));
  EXPECT_TRUE(engine_->WorkerHealth(1).ok());
  for (int i = 0; i < 10; ++i) {
    const auto reader = Submit(5);
    ASSERT_TRUE(submitted_.ok()) << submitted_;
    ASSERT_TRUE(reader->WaitForEnd());
    EXPECT_TRUE(reader->completion().status.ok()) << reader->completion().status;
  }
  EXPECT_EQ(engine_->num_in_flight(), 0);
}

TEST_F(WorkerFaultTest, WithoutAWorkerThatServesRequestsAreUnavailable) {
  Start(2);
  for (FakeBackend* fake : fakes_) {
    fake->FailLaunchAt(1);
    ASSERT_TRUE(Submit(5)->WaitForEnd());
    EXPECT_TRUE(submitted_.ok()) << submitted_;
  }
  Submit(5);
  EXPECT_EQ(submitted_.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(submitted_.message()), HasSubstr("the fake device refuses the step"));
  EXPECT_EQ(engine_->CheckRoom(), submitted_);
  EXPECT_EQ(engine_->num_in_flight(), 0);
}

TEST_F(WorkerFaultTest, AStuckWorkersRequestsFailAndOthersGoOn) {
  fake_.step_time = std::chrono::microseconds(100);
  Start(2, /*stuck_step_seconds=*/0.3);
  fakes_[0]->HangAt(1);
  const auto running = Submit(50);   // worker 0
  const auto healthy = Submit(120);  // worker 1
  const auto waiting = Submit(60);   // worker 0 again
  EXPECT_EQ(engine_->FailStuckRequests(0), 0);
  ASSERT_TRUE(Becomes([&] { return !engine_->WorkerHealth(0).ok(); }));
  EXPECT_THAT(std::string(engine_->WorkerHealth(0).message()),
              HasSubstr("the worker on fake is stuck: its step has made no progress for 0."));
  EXPECT_EQ(engine_->FailStuckRequests(100), 0);
  EXPECT_EQ(engine_->FailStuckRequests(0), 2);
  EXPECT_EQ(engine_->FailStuckRequests(0), 0);
  for (const auto& reader : {running, waiting}) {
    ASSERT_TRUE(reader->WaitForEnd());
    EXPECT_EQ(reader->completion().status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(reader->completion().status.message()),
                HasSubstr("server.stuck_step_seconds is 0.3"));
  }
  ASSERT_TRUE(healthy->WaitForEnd());
  EXPECT_EQ(healthy->tokens().size(), 120u);
  for (int i = 0; i < 5; ++i) {
    const auto reader = Submit(5);
    ASSERT_TRUE(reader->WaitForEnd());
    EXPECT_TRUE(reader->completion().status.ok()) << reader->completion().status;
  }

  fakes_[0]->ReleaseHang();
  ASSERT_TRUE(Becomes([&] { return engine_->num_in_flight() == 0; }));
  ASSERT_TRUE(Becomes([&] {
    const WorkerLoad load = engine_->load()[0];
    return load.kv_blocks_free == load.kv_blocks_total && load.step_age_seconds == 0;
  }));
  EXPECT_TRUE(engine_->WorkerHealth(0).ok());
  EXPECT_TRUE(running->tokens().empty());  // what the step computed after all is dropped
  EXPECT_EQ(engine_->load()[0].tokens_outstanding, 0);
  const auto again = Submit(5);
  ASSERT_TRUE(again->WaitForEnd());
  EXPECT_TRUE(again->completion().status.ok());
}

TEST_F(WorkerFaultTest, AloneAndStuckItRefuses) {
  Start(1, /*stuck_step_seconds=*/0.2);
  fakes_[0]->HangAt(1);
  const auto reader = Submit(5);
  ASSERT_TRUE(Becomes([&] { return !engine_->WorkerHealth(0).ok(); }));
  Submit(5);
  EXPECT_EQ(submitted_.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(submitted_.message()), HasSubstr("is stuck"));
  fakes_[0]->ReleaseHang();
  ASSERT_TRUE(reader->WaitForEnd());
  EXPECT_TRUE(reader->completion().status.ok());
}

TEST_F(WorkerFaultTest, RefusesMoreEndTokensThanTheBackendTakes) {
  fake_.max_end_token_ids = 32;
  Start(1);
  const auto submit = [&](int32_t ends) {
    EngineRequest request;
    request.id = "ends";
    request.prompt = {5};
    request.max_new_tokens = 1;
    for (int32_t end = 0; end < ends; ++end) {
      request.sampling.end_token_ids.push_back(end);
    }
    const auto reader = StreamReader::Create();
    const absl::Status status = engine_->Submit(std::move(request), reader->stream());
    EXPECT_TRUE(!status.ok() || reader->WaitForEnd());
    return status;
  };
  EXPECT_TRUE(submit(32).ok());
  const absl::Status status = submit(33);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "stopping.stop_token_ids and the model's end tokens are 33 ids together; the backend "
            "fake takes at most 32");
}

TEST(TokenStreamFaultTest, AFailedStreamTakesNothingMore) {
  const auto reader = StreamReader::Create();
  TokenStream& stream = *reader->stream();
  ASSERT_TRUE(stream.Append("a", 1));
  stream.Notify();
  EXPECT_TRUE(stream.Fail(absl::InternalError("stuck")));
  ASSERT_TRUE(reader->WaitForEnd());  // told without a delivery thread
  EXPECT_EQ(stream.stop_request(), TokenStream::StopRequest::kCancel);
  EXPECT_FALSE(stream.Append("b", 2));
  Completion completion;
  completion.reason = FinishReason::kLength;
  EXPECT_FALSE(stream.Finish("c", completion));
  EXPECT_FALSE(stream.Fail(absl::InternalError("again")));
  OutputDelta delta;
  EXPECT_TRUE(stream.Take(&delta));
  EXPECT_TRUE(delta.empty());
  EXPECT_EQ(reader->text(), "a");
  EXPECT_EQ(stream.completion().status, absl::InternalError("stuck"));
  EXPECT_EQ(stream.completion().reason, FinishReason::kNone);
}

TEST(TokenStreamFaultTest, AStreamThatHasEndedCannotFail) {
  const auto reader = StreamReader::Create();
  ASSERT_TRUE(reader->stream()->Finish("", {}));
  EXPECT_FALSE(reader->stream()->Fail(absl::InternalError("stuck")));
  reader->OnOutput();
  EXPECT_TRUE(reader->completion().status.ok());
}

}  // namespace
}  // namespace ferrite

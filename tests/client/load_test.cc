#include "client/load.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/bench_arrivals.h"
#include "ferrite/v1/inference.grpc.pb.h"

namespace ferrite {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::SizeIs;

using Messages = std::vector<std::vector<int32_t>>;  // the token ids of each

// Answers every request with `messages`, `pause` before each. Request i is the one with prompt {i}.
class ScriptedInference : public v1::Inference::Service {
 public:
  Messages messages = {{1}, {2, 3}, {4}};
  std::chrono::milliseconds pause{0};
  // A request goes on only when so many streams are open together again, until one with an index
  // of `tail` or above has come.
  int wait_for = 0;
  int64_t tail = 0;
  std::set<int64_t> refused;       // with RESOURCE_EXHAUSTED
  std::set<int64_t> aborted;       // FINISH_REASON_ABORTED after the first message
  std::atomic<bool> hang = false;  // after the first message, until cancelled

  int most_open() const { return most_open_; }
  bool timed_out() const { return timed_out_; }
  std::vector<int64_t> seen() {
    std::sort(seen_.begin(), seen_.end());
    return seen_;
  }

  grpc::Status GenerateStream(grpc::ServerContext* context, const v1::GenerateRequest* request,
                              grpc::ServerWriter<v1::GenerateStreamResponse>* writer) override {
    const int64_t index = request->token_ids().ids(0);
    Enter(index);
    const grpc::Status status = Answer(index, context, writer);
    std::lock_guard<std::mutex> lock(mutex_);
    --open_;
    return status;
  }

 private:
  void Enter(int64_t index) {
    std::unique_lock<std::mutex> lock(mutex_);
    seen_.push_back(index);
    most_open_ = std::max(most_open_, ++open_);
    tail_came_ = tail_came_ || index >= tail;
    const int before = times_full_;
    if (open_ == wait_for) ++times_full_;
    full_.notify_all();
    const auto may_go_on = [&] { return wait_for == 0 || tail_came_ || times_full_ > before; };
    if (!full_.wait_for(lock, std::chrono::seconds(20), may_go_on)) timed_out_ = true;
  }

  grpc::Status Answer(int64_t index, grpc::ServerContext* context,
                      grpc::ServerWriter<v1::GenerateStreamResponse>* writer) {
    if (refused.contains(index)) {
      return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full");
    }
    v1::GenerateStreamResponse message;
    message.mutable_started();
    writer->Write(message);
    const size_t given = aborted.contains(index) ? 1 : messages.size();
    for (size_t i = 0; i < given; ++i) {
      std::this_thread::sleep_for(pause);
      const bool last = i + 1 == given;
      v1::Choice* choice =
          last ? message.mutable_finished()->add_choices() : message.mutable_delta()->add_choices();
      choice->mutable_token_ids()->Add(messages[i].begin(), messages[i].end());
      if (last) {
        choice->set_finish_reason(aborted.contains(index) ? v1::FINISH_REASON_ABORTED
                                                          : v1::FINISH_REASON_LENGTH);
        message.mutable_finished()->mutable_usage()->set_cached_tokens(1);
      }
      writer->Write(message);
      message.Clear();
      while (hang && !context->IsCancelled())
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (context->IsCancelled()) return grpc::Status::CANCELLED;
    }
    return grpc::Status::OK;
  }

  std::mutex mutex_;
  std::condition_variable full_;
  int open_ = 0;
  int most_open_ = 0;
  int times_full_ = 0;
  bool tail_came_ = false;
  bool timed_out_ = false;
  std::vector<int64_t> seen_;
};

class LoadTest : public testing::Test {
 protected:
  LoadTest() {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&inference_);
    server_ = builder.BuildAndStart();
    address_ = "127.0.0.1:" + std::to_string(port);
    plan_.make_request = [this](int64_t index, int32_t turn, const std::vector<int32_t>& before) {
      v1::GenerateRequest request;
      request.mutable_token_ids()->add_ids(static_cast<int32_t>(index));
      request.mutable_stopping()->set_max_new_tokens(output_tokens_);
      const std::lock_guard<std::mutex> lock(mutex_);
      made_.push_back({index, turn, before});
      return std::optional(std::move(request));
    };
    UseThreads(1);
  }
  ~LoadTest() override { server_->Shutdown(std::chrono::system_clock::now()); }

  void UseThreads(int threads) {
    plan_.channels.clear();
    for (int i = 0; i < threads; ++i) {
      grpc::ChannelArguments arguments;
      arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
      plan_.channels.push_back(
          grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments));
    }
  }

  LoadResult Run() {
    return RunLoad(plan_, [](const LoadProgress&) { return true; });
  }

  struct Made {
    int64_t index;
    int32_t turn;
    std::vector<int32_t> before;
  };

  ScriptedInference inference_;
  int32_t output_tokens_ = 4;
  std::mutex mutex_;
  std::vector<Made> made_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  LoadPlan plan_;
};

TEST_F(LoadTest, CountsTokensAndGapsOfEachMessage) {
  inference_.pause = std::chrono::milliseconds(20);
  plan_.count = 2;
  const LoadResult result = Run();
  EXPECT_EQ(result.completed, 2);
  EXPECT_EQ(result.failed(), 0);
  EXPECT_TRUE(result.worst().ok());
  EXPECT_EQ(result.input_tokens, 2);
  EXPECT_EQ(result.cached_tokens, 2);
  EXPECT_EQ(result.output_tokens, 8);
  EXPECT_EQ(result.token_messages, 6);
  EXPECT_THAT(result.first_token, SizeIs(2));
  EXPECT_THAT(result.first_token, Each(Ge(0.02)));
  EXPECT_THAT(result.message_gaps, SizeIs(4));  // two a request
  // {2, 3} counts twice with half its gap, {4} once; the first token has none.
  ASSERT_THAT(result.inter_token, SizeIs(6));
  EXPECT_EQ(result.inter_token[0], result.message_gaps[0] / 2);
  EXPECT_EQ(result.inter_token[1], result.message_gaps[0] / 2);
  EXPECT_EQ(result.inter_token[2], result.message_gaps[1]);
  ASSERT_THAT(result.times, SizeIs(2));
  EXPECT_EQ(result.times[0].first_token, result.first_token[0]);
  EXPECT_EQ(result.times[0].output_tokens, 4);
  // The mean of a request is over its tokens after those of the first message.
  EXPECT_NEAR(result.times[0].inter_token, (result.message_gaps[0] + result.message_gaps[1]) / 3,
              1e-9);
  EXPECT_GE(result.times[0].end_to_end, 0.06);
  // One at a time: the parts of a request's time are not more than the whole.
  const double whole = result.times[0].end_to_end + result.times[1].end_to_end;
  const double parts = std::accumulate(result.first_token.begin(), result.first_token.end(), 0.0) +
                       std::accumulate(result.message_gaps.begin(), result.message_gaps.end(), 0.0);
  EXPECT_LE(parts, whole);
  EXPECT_LE(whole, result.seconds);
}

class LoadThreadsTest : public LoadTest, public testing::WithParamInterface<int> {};

TEST_P(LoadThreadsTest, KeepsSoManyStreamsInFlight) {
  UseThreads(GetParam());
  plan_.count = 50;
  plan_.concurrency = 8;
  inference_.wait_for = 8;
  inference_.tail = 50 - 8;  // from here on there are not enough left
  const LoadResult result = Run();
  EXPECT_EQ(result.completed, 50);
  EXPECT_EQ(result.output_tokens, 200);
  EXPECT_EQ(inference_.most_open(), 8) << "never more";
  EXPECT_FALSE(inference_.timed_out()) << "never fewer";
}

INSTANTIATE_TEST_SUITE_P(Threads, LoadThreadsTest, testing::Values(1, 3, 20));

TEST_F(LoadTest, SendsEachRequestOnce) {
  UseThreads(2);
  plan_.first_index = 5;
  plan_.count = 20;
  plan_.concurrency = 64;  // more than there are
  EXPECT_EQ(Run().completed, 20);
  std::vector<int64_t> expected(20);
  std::iota(expected.begin(), expected.end(), 5);
  EXPECT_EQ(inference_.seen(), expected);
}

TEST_F(LoadTest, AFailedRequestIsCountedAndTheNextOneSent) {
  inference_.refused = {0, 3, 4};
  inference_.aborted = {7};
  plan_.count = 10;
  plan_.concurrency = 2;
  const LoadResult result = Run();
  EXPECT_EQ(result.completed, 6);
  EXPECT_EQ(result.failed(), 4);
  ASSERT_THAT(result.failures, SizeIs(2));
  EXPECT_EQ(result.failures.at(grpc::StatusCode::RESOURCE_EXHAUSTED).count, 3);
  EXPECT_EQ(result.failures.at(grpc::StatusCode::RESOURCE_EXHAUSTED).message, "the queue is full");
  EXPECT_EQ(result.failures.at(grpc::StatusCode::ABORTED).count, 1);
  EXPECT_EQ(result.worst().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(result.output_tokens, 6 * 4 + 1);  // the aborted one gave a token
  EXPECT_THAT(result.times, SizeIs(6));
  EXPECT_THAT(result.failures.at(grpc::StatusCode::RESOURCE_EXHAUSTED).seconds, SizeIs(3));
}

TEST_F(LoadTest, AnotherNumberOfTokensIsAFailure) {
  output_tokens_ = 5;
  plan_.count = 1;
  const LoadResult result = Run();
  EXPECT_EQ(result.completed, 0);
  EXPECT_EQ(result.worst().error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(result.worst().error_message(), "the stream gave 4 tokens; 5 were asked for");
}

TEST_F(LoadTest, KeepsSamplesFromAllOverTheRun) {
  UseThreads(3);
  plan_.count = 300;
  plan_.concurrency = 6;
  plan_.num_samples = 30;
  const LoadResult result = Run();
  ASSERT_THAT(result.samples, SizeIs(30));
  std::set<int64_t> indices;
  int late = 0;
  for (const auto& [order, sample] : result.samples) {
    indices.insert(sample.index);
    late += sample.index >= 150 ? 1 : 0;
    EXPECT_THAT(sample.ids, ElementsAre(1, 2, 3, 4));
    EXPECT_EQ(sample.request.token_ids().ids(0), sample.index);
  }
  EXPECT_THAT(indices, SizeIs(30));
  EXPECT_GT(late, 5);
  EXPECT_LT(late, 25);
  UseThreads(1);
  std::set<int64_t> again;
  for (const auto& [order, sample] : Run().samples) again.insert(sample.index);
  EXPECT_EQ(again, indices) << "whatever the threads";
}

TEST_F(LoadTest, ATurnFollowsTheAnswerOfTheOneBefore) {
  plan_.count = 2;
  plan_.turns = 3;
  inference_.refused = {1};
  const LoadResult result = Run();
  EXPECT_EQ(result.started, 2);
  EXPECT_EQ(result.completed, 3);
  EXPECT_EQ(result.failed(), 1) << "a failed turn ends its conversation";
  ASSERT_THAT(made_, SizeIs(4));
  EXPECT_EQ(made_[1].index, 0);
  EXPECT_EQ(made_[1].turn, 1);
  EXPECT_THAT(made_[1].before, ElementsAre(0, 1, 2, 3, 4)) << "the prompt {0} and the answer";
  EXPECT_EQ(made_[3].index, 1);
  EXPECT_EQ(made_[3].turn, 0);
}

TEST_F(LoadTest, ArrivalsDoNotWaitForAnswers) {
  inference_.pause = std::chrono::milliseconds(200);
  plan_.count = 20;
  plan_.rate = 400;
  const LoadResult result = Run();
  EXPECT_EQ(result.completed, 20);
  EXPECT_GE(inference_.most_open(), 15) << "all come within a fraction of the first's 600 ms";
  EXPECT_THAT(result.send_lag, SizeIs(20));
  EXPECT_THAT(result.send_lag, Each(Ge(0.0)));
}

TEST_F(LoadTest, ArrivalsComeAtTheirRateWhateverTheThreads) {
  UseThreads(3);
  plan_.count = 100;
  plan_.rate = 200;
  plan_.arrival_seed = 3;
  PoissonArrivals arrivals(plan_.rate, plan_.arrival_seed);
  double last = 0;
  for (int i = 0; i < 100; ++i) last = arrivals.Next();
  const LoadResult result = Run();
  EXPECT_EQ(result.completed, 100);
  EXPECT_GE(result.seconds, last);
  EXPECT_LT(result.seconds, last + 5);
}

TEST_F(LoadTest, NothingIsSentAfterTheDuration) {
  inference_.pause = std::chrono::milliseconds(10);
  plan_.count = 1000000;
  plan_.concurrency = 2;
  plan_.duration_seconds = 0.3;
  const LoadResult closed = Run();
  EXPECT_GT(closed.completed, 2);
  EXPECT_EQ(closed.completed, closed.started) << "what was in flight is waited for";
  EXPECT_EQ(closed.cut_short, 0);
  EXPECT_GE(closed.seconds, 0.3);
  EXPECT_LT(closed.seconds, 10);
  plan_.rate = 100;
  PoissonArrivals arrivals(plan_.rate, plan_.arrival_seed);
  int expected = 0;
  while (arrivals.Next() < 0.3) ++expected;
  EXPECT_EQ(Run().completed, expected) << "all that were due, and no more";
}

TEST_F(LoadTest, TheTimeoutIsOfEachRequest) {
  inference_.hang = true;
  plan_.count = 2;
  plan_.timeout_seconds = 0.2;
  const LoadResult result = Run();
  EXPECT_EQ(result.failures.at(grpc::StatusCode::DEADLINE_EXCEEDED).count, 2);
  EXPECT_EQ(result.output_tokens, 2);
}

TEST_F(LoadTest, StopsWhenToldAndKeepsWhatItHas) {
  inference_.hang = true;
  UseThreads(2);
  plan_.count = 1000;
  plan_.concurrency = 6;
  const LoadResult result =
      RunLoad(plan_, [](const LoadProgress& progress) { return progress.output_tokens < 6; });
  EXPECT_EQ(result.cut_short, 6);
  EXPECT_EQ(result.completed + result.failed(), 0);
  EXPECT_EQ(result.output_tokens, 6);
  EXPECT_THAT(result.first_token, SizeIs(6));
  EXPECT_THAT(inference_.seen(), SizeIs(6)) << "no request was sent after the stop";
}

TEST_F(LoadTest, AServerThatIsNotThereFailsEveryRequest) {
  plan_.channels = {
      grpc::CreateChannel("unix:/nowhere/ferrite.sock", grpc::InsecureChannelCredentials())};
  plan_.count = 5;
  plan_.concurrency = 2;
  const LoadResult result = Run();
  EXPECT_EQ(result.failures.at(grpc::StatusCode::UNAVAILABLE).count, 5);
}

}  // namespace
}  // namespace ferrite

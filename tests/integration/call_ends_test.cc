// How calls end beside others, and when their clients leave or stop reading.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <grpcpp/generic/generic_stub.h>

#include <deque>
#include <functional>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "server/wire.h"
#include "tests/integration/harness.h"
#include "tests/integration/open_stream.h"

namespace ferrite {
namespace {

using test::Answer;
using test::Becomes;
using test::FakeBackendOptions;
using test::GetLoad;
using test::Harness;
using test::OpenStream;
using test::RunOn;
using test::SlowDevice;
using test::ToLength;

// Room for a million tokens, as fast as they come.
FakeBackendOptions FastDevice() {
  FakeBackendOptions fast;
  fast.check_kv = false;
  fast.block_size = 256;
  fast.num_blocks = 4096;
  fast.max_sequence_length = 1 << 20;
  return fast;
}

v1::EmbedRequest ToEmbed(const std::string& text) {
  v1::EmbedRequest request;
  request.add_inputs()->set_text(text);
  return request;
}

grpc::Status Embed(Harness& harness, const v1::EmbedRequest& request, v1::EmbedResponse* response) {
  grpc::ClientContext context;
  return harness.inference().Embed(&context, request, response);
}

TEST(CallEndsTest, ASecondCallOfAnIdIsRefusedAndTheFirstGoesOn) {
  const auto harness = Harness::Fake(SlowDevice());
  ASSERT_NE(harness, nullptr);
  v1::GenerateRequest request = ToLength(60);
  request.set_request_id("twin");
  request.mutable_output()->set_n(2);
  const Answer alone = harness->Stream(request);
  ASSERT_TRUE(alone.status.ok()) << "an id may be used again once its request has ended";

  OpenStream first(harness->NewChannel(), request);
  ASSERT_TRUE(first.Read());
  v1::GenerateResponse response;
  v1::EmbedRequest embed = ToEmbed("Hi");
  embed.set_request_id("twin");
  v1::EmbedResponse embedded;
  for (const grpc::Status& second :
       {RunOn(harness->NewChannel(), request), harness->Generate(request, &response),
        Embed(*harness, embed, &embedded)}) {
    EXPECT_EQ(second.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(second.error_message(), "request_id is 'twin'; a request with this id is in flight");
  }
  EXPECT_TRUE(first.Finish().ok());
  EXPECT_EQ(first.message().finished().usage().completion_tokens(), 120);
  EXPECT_EQ(first.message().finished().usage().completion_tokens(),
            alone.usage.completion_tokens());
  EXPECT_TRUE(harness->Generate(request, &response).ok());
  EXPECT_TRUE(harness->BecomesIdle());
}

TEST(CallEndsTest, EverySampleEndsWithItsCall) {
  const auto harness = Harness::Fake(SlowDevice());
  ASSERT_NE(harness, nullptr);
  v1::GenerateRequest request = ToLength(4000);
  request.set_request_id("four");
  request.mutable_output()->set_n(4);
  {
    OpenStream cancelled(harness->NewChannel(), request);
    for (int i = 0; i < 5; ++i) ASSERT_TRUE(cancelled.Read());
  }
  EXPECT_TRUE(harness->BecomesIdle()) << "what the samples share is free once all are";

  OpenStream aborted(harness->NewChannel(), request);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(aborted.Read());
  grpc::ClientContext context;
  v1::AbortRequest abort;
  abort.set_request_id("four");
  v1::AbortResponse response;
  EXPECT_TRUE(harness->control().Abort(&context, abort, &response).ok());
  int ended = 0;
  while (aborted.Read()) {
    const v1::GenerateStreamResponse& message = aborted.message();
    for (const v1::Choice& choice :
         message.has_finished() ? message.finished().choices() : message.delta().choices()) {
      ended += choice.finish_reason() == v1::FINISH_REASON_ABORTED ? 1 : 0;
    }
  }
  EXPECT_EQ(ended, 4);
  EXPECT_TRUE(aborted.Finish().ok());
  EXPECT_TRUE(harness->BecomesIdle());
}

// A client that sends a call and leaves the answer where it is.
class Sender {
 public:
  Sender(const std::shared_ptr<grpc::Channel>& channel, const char* path,
         const google::protobuf::Message& request)
      : stub_(channel) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(2));
    call_ = stub_.PrepareCall(&context_, path, &queue_);
    call_->StartCall(this);
    WaitForQueue();
    call_->WriteLast(SerializeMessage(request), grpc::WriteOptions(), this);
    WaitForQueue();
  }
  ~Sender() {
    queue_.Shutdown();
    WaitForQueue();
  }

  // gRPC's client learns the status once it has read what came before.
  grpc::Status Finish() {
    grpc::Status status;
    grpc::ByteBuffer message;
    call_->Read(&message, this);
    WaitForQueue();
    call_->Finish(&status, this);
    WaitForQueue();
    return status;
  }

 private:
  void WaitForQueue() {
    void* tag = nullptr;
    bool ok = false;
    queue_.Next(&tag, &ok);
  }

  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

TEST(CallEndsTest, AnAnswerThatNobodyReadsEndsItsCall) {
  ServerConfig config = Harness::DefaultConfig();
  config.server.slow_reader_seconds = 0.5;
  const auto harness = Harness::Fake(FastDevice(), config);
  ASSERT_NE(harness, nullptr);
  grpc::ChannelArguments arguments;  // a client that buffers little
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  const auto channel =
      grpc::CreateCustomChannel(harness->address(), grpc::InsecureChannelCredentials(), arguments);
  Sender sender(channel, "/ferrite.v1.Inference/Generate", ToLength(150'000));
  EXPECT_TRUE(Becomes([&] { return GetLoad(*harness).slow_readers_total() == 1; }));
  EXPECT_TRUE(harness->BecomesIdle());
  EXPECT_TRUE(Becomes([&] { return harness->server().active_calls() == 0; }));
  EXPECT_EQ(sender.Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(RunOn(channel, ToLength(1000)).ok()) << "the connection is as good as before";
}

TEST(CallEndsTest, LongTextsAreServedAsShortOnesAre) {
  const auto harness = Harness::Fake(FastDevice());
  ASSERT_NE(harness, nullptr);
  std::string text;
  while (text.size() < 60'000) text += "Once upon a time ";
  grpc::ClientContext context;
  v1::TokenizeRequest tokenize;
  tokenize.set_text(text);
  v1::TokenizeResponse tokens;
  ASSERT_TRUE(harness->inference().Tokenize(&context, tokenize, &tokens).ok());
  EXPECT_EQ(tokens.token_ids_size(), tokens.tokens_size());
  v1::GenerateRequest request = ToLength(10);
  request.set_text(text);
  const Answer answer = harness->Stream(request);
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.broken_rule, "");
  EXPECT_EQ(answer.info.prompt_tokens(), tokens.token_ids_size());
  v1::GenerateResponse response;
  ASSERT_TRUE(harness->Generate(request, &response).ok());
  EXPECT_EQ(response.info().prompt_tokens(), tokens.token_ids_size());
  EXPECT_EQ(std::vector<int32_t>(response.choices(0).token_ids().begin(),
                                 response.choices(0).token_ids().end()),
            answer.token_ids);
  v1::EmbedResponse embedded;
  EXPECT_TRUE(Embed(*harness, ToEmbed(text), &embedded).ok());
  EXPECT_EQ(embedded.usage().prompt_tokens(), tokens.token_ids_size());

  request.set_text(std::string(3'000'000, 'x'));
  EXPECT_EQ(harness->Stream(request).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(harness->Generate(request, &response).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Embed(*harness, ToEmbed(request.text()), &embedded).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

// Their texts take far longer to tokenise, even by themselves, than their clients wait.
TEST(CallEndsTest, ClientsThatLeaveWhileTheirTextsAreTokenisedCostNoEngineWork) {
  FakeBackendOptions roomy = FastDevice();
  roomy.num_blocks = 1 << 14;
  roomy.max_sequence_length = 1 << 22;
  ServerConfig config = Harness::DefaultConfig();
  config.scheduler.max_waiting_tokens = 1 << 30;
  const auto harness = Harness::Fake(roomy, config);
  ASSERT_NE(harness, nullptr);
  std::string text;
  while (text.size() < 3'900'000) text += "Once upon a time ";
  v1::GenerateRequest request = ToLength(1);
  request.set_text(text);
  using Method = std::function<grpc::Status(grpc::ClientContext*)>;
  const Method generate = [&](grpc::ClientContext* context) {
    v1::GenerateResponse response;
    return harness->inference().Generate(context, request, &response);
  };
  const Method stream = [&](grpc::ClientContext* context) {
    v1::GenerateStreamResponse message;
    const auto reader = harness->inference().GenerateStream(context, request);
    while (reader->Read(&message)) {
    }
    return reader->Finish();
  };
  const Method embed = [&](grpc::ClientContext* context) {
    v1::EmbedResponse response;
    return harness->inference().Embed(context, ToEmbed(text), &response);
  };
  const Method tokenize = [&](grpc::ClientContext* context) {
    v1::TokenizeRequest of_text;
    of_text.set_text(text);
    v1::TokenizeResponse response;
    return harness->inference().Tokenize(context, of_text, &response);
  };
  const uint64_t steps = harness->server().engine().load()[0].steps;
  v1::GenerateRequest refused = request;  // once it has been tokenised
  refused.mutable_stopping()->set_max_new_tokens(1 << 23);
  for (const Method& first : {generate, stream, embed}) {
    std::deque<grpc::ClientContext> contexts;
    std::vector<std::future<grpc::Status>> calls;
    const auto start = [&](const Method& method) {
      contexts.emplace_back();
      calls.push_back(std::async(std::launch::async, method, &contexts.back()));
    };
    start(first);
    ASSERT_TRUE(Becomes([&] { return harness->server().active_calls() == 1; }));
    for (const Method& other : {generate, stream, embed, tokenize}) start(other);
    contexts.emplace_back();
    contexts.back().set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(20));
    EXPECT_EQ(generate(&contexts.back()).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    for (grpc::ClientContext& context : contexts) context.TryCancel();
    for (auto& call : calls) EXPECT_EQ(call.get().error_code(), grpc::StatusCode::CANCELLED);
    EXPECT_TRUE(Becomes([&] { return harness->server().active_calls() == 0; }));
    EXPECT_EQ(harness->Stream(refused).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
        << "its turn comes after the others'";
    EXPECT_EQ(harness->server().engine().load()[0].steps, steps);
    EXPECT_EQ(harness->server().engine().num_in_flight(), 0);
  }
  EXPECT_TRUE(harness->BecomesIdle());
  EXPECT_TRUE(harness->Stream(ToLength(3)).status.ok());
}

TEST(CallEndsTest, AServerStopsAmidTokenising) {
  const auto harness = Harness::Fake(FastDevice());
  ASSERT_NE(harness, nullptr);
  v1::GenerateRequest request = ToLength(1);
  request.set_text(std::string(3'900'000, 'x'));
  std::vector<std::future<grpc::Status>> calls;
  for (int i = 0; i < 4; ++i) {
    calls.push_back(std::async(std::launch::async, [&] {
      v1::GenerateResponse response;
      return harness->Generate(request, &response);
    }));
  }
  EXPECT_TRUE(Becomes([&] { return harness->server().active_calls() == 4; }));
  harness->StopServer();
  for (auto& call : calls) EXPECT_FALSE(call.get().ok());
}

}  // namespace
}  // namespace ferrite

// The server around a scripted backend: streams, stops, faults, health and drain.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <grpcpp/generic/generic_stub.h>

#include <future>
#include <thread>

#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/integration/harness.h"

namespace ferrite {
namespace {

using test::Answer;
using test::FakeBackendOptions;
using test::Greedy;
using test::Harness;
using test::SlowDevice;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using HealthStatus = grpc::health::v1::HealthCheckResponse;

// Text tokens of the embedded model's vocabulary, one after the other: a story without a model.
FakeBackendOptions Script(std::vector<TokenId> tokens, size_t prompt_tokens) {
  FakeBackendOptions fake;
  fake.source = [tokens, prompt_tokens](std::span<const TokenId> context) {
    return tokens[(context.size() - prompt_tokens) % tokens.size()];
  };
  return fake;
}

// The byte token of a character.
TokenId ByteToken(char character) { return 3 + static_cast<unsigned char>(character); }

std::vector<TokenId> Bytes(const std::string& text) {
  std::vector<TokenId> tokens;
  for (const char character : text) {
    tokens.push_back(ByteToken(character));
  }
  return tokens;
}

v1::GenerateRequest OneTokenPrompt(int32_t max_new_tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(300);
  request.mutable_stopping()->set_max_new_tokens(max_new_tokens);
  return request;
}

HealthStatus::ServingStatus Health(Harness& harness, const std::string& service) {
  const auto stub = grpc::health::v1::Health::NewStub(harness.NewChannel());
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  HealthStatus response;
  grpc::ClientContext context;
  const grpc::Status status = stub->Check(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.status();
}

bool HealthBecomes(Harness& harness, const std::string& service,
                   HealthStatus::ServingStatus wanted) {
  const Clock::time_point limit = Clock::now() + std::chrono::seconds(10);
  while (Clock::now() < limit) {
    if (Health(harness, service) == wanted) {
      return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return false;
}

TEST(ServerTest, StopTokenEndsTheTextAndIsCounted) {
  const auto harness = Harness::Fake(Script({400, 401, 402, 403}, 1));
  v1::GenerateRequest request = OneTokenPrompt(20);
  request.mutable_stopping()->add_stop_token_ids(402);
  const Answer answer = harness->Stream(request);
  EXPECT_THAT(answer.token_ids, ElementsAre(400, 401, 402));
  EXPECT_EQ(answer.reason, v1::FINISH_REASON_STOP);
  EXPECT_EQ(answer.stop.token_id(), 402);
  EXPECT_EQ(answer.usage.completion_tokens(), 3);
  EXPECT_TRUE(harness->BecomesIdle());
  EXPECT_GE(harness->fake().stats().steps, 4u);  // the late step ran and was discarded
  EXPECT_THAT(harness->fake().stats().problems, IsEmpty());
}

TEST(ServerTest, ModelsEndTokenStopsUnlessIgnored) {
  const auto harness = Harness::Fake(Script({400, 2, 401, 402}, 1));
  v1::GenerateRequest request = OneTokenPrompt(4);
  EXPECT_THAT(harness->Stream(request).token_ids, ElementsAre(400, 2));
  request.mutable_stopping()->set_ignore_eos(true);
  const Answer answer = harness->Stream(request);
  EXPECT_THAT(answer.token_ids, ElementsAre(400, 2, 401, 402));
  EXPECT_EQ(answer.reason, v1::FINISH_REASON_LENGTH);
}

TEST(ServerTest, StopStringsSpanTokensAndAreHeldBack) {
  const auto tokenizer = Tokenizer::Load(FERRITE_SOURCE_DIR "/models/stories260k");
  ASSERT_TRUE(tokenizer.ok());
  const std::string text = "one STOP two";
  std::vector<TokenId> script;
  for (const char letter : text) {
    script.push_back(*(*tokenizer)->TokenToId(letter == ' ' ? "▁" : std::string(1, letter)));
  }
  const auto harness = Harness::Fake(Script(script, 1));
  v1::GenerateRequest request = OneTokenPrompt(static_cast<int32_t>(text.size()));
  request.mutable_stopping()->add_stop_strings("STOP");
  request.mutable_stopping()->add_stop_strings("STOP two");
  Answer answer = harness->Stream(request, [](grpc::ClientContext&, const Answer& so_far) {
    EXPECT_EQ(so_far.text.find('S'), std::string::npos) << "a part of the stop string leaked";
  });
  EXPECT_EQ(answer.text, "one ");
  EXPECT_EQ(answer.reason, v1::FINISH_REASON_STOP);
  EXPECT_EQ(answer.stop.stop_string(), "STOP");
  EXPECT_EQ(answer.usage.completion_tokens(), 8);
  EXPECT_EQ(answer.token_ids.size(), 8u);
  request.mutable_stopping()->set_include_stop_string(true);
  EXPECT_EQ(harness->Stream(request).text, "one STOP");
  request.mutable_stopping()->set_min_new_tokens(9);
  answer = harness->Stream(request);
  EXPECT_EQ(answer.text, "one STOP two");
  EXPECT_EQ(answer.stop.stop_string(), "STOP two");
}

TEST(ServerTest, NeverSplitsACharacter) {
  const std::string text = "héé 😀 日本";
  FakeBackendOptions fake = Script(Bytes(text), 1);
  fake.step_time = std::chrono::milliseconds(1);
  const auto harness = Harness::Fake(fake);
  v1::GenerateRequest request = OneTokenPrompt(static_cast<int32_t>(text.size()));
  request.mutable_stopping()->set_ignore_eos(true);
  const Answer whole = harness->Stream(request, [](grpc::ClientContext&, const Answer& so_far) {
    EXPECT_EQ(so_far.text.find("\xEF\xBF\xBD"), std::string::npos);
  });
  EXPECT_EQ(whole.text, text);
}

TEST(ServerTest, DeltasMergeForASlowReader) {
  FakeBackendOptions fake = Script({400, 401, 402}, 1);
  fake.max_sequence_length = 4096;
  fake.num_blocks = 2048;
  const auto harness = Harness::Fake(fake);
  const Answer answer =
      harness->Stream(OneTokenPrompt(3000), [](grpc::ClientContext&, const Answer&) {
        std::this_thread::sleep_for(std::chrono::microseconds(500));
      });
  EXPECT_TRUE(answer.status.ok());
  EXPECT_EQ(answer.token_ids.size(), 3000u);
  EXPECT_LT(answer.messages, 3002);
}

TEST(ServerTest, StreamCancelFreesTheBlocks) {
  const auto harness = Harness::Fake(SlowDevice());
  v1::GenerateRequest request = OneTokenPrompt(4000);
  request.mutable_stopping()->set_ignore_eos(true);
  const Answer answer =
      harness->Stream(request, [](grpc::ClientContext& context, const Answer& so_far) {
        if (so_far.token_ids.size() >= 5) {
          context.TryCancel();
        }
      });
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(harness->BecomesIdle());
  EXPECT_LT(harness->fake().stats().steps, 1000u);
}

TEST(ServerTest, UnaryCancelFreesTheBlocks) {
  const auto harness = Harness::Fake(SlowDevice());
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  v1::GenerateRequest request = OneTokenPrompt(4000);
  request.mutable_stopping()->set_ignore_eos(true);
  v1::GenerateResponse response;
  EXPECT_EQ(harness->inference().Generate(&context, request, &response).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(harness->BecomesIdle());
  EXPECT_LT(harness->fake().stats().steps, 1000u);
}

TEST(ServerTest, AbortEndsARequestByItsId) {
  const auto harness = Harness::Fake(SlowDevice());
  v1::GenerateRequest request = OneTokenPrompt(4000);
  request.set_request_id("mine");
  request.mutable_stopping()->set_ignore_eos(true);
  const Answer answer = harness->Stream(request, [&](grpc::ClientContext&, const Answer& so_far) {
    EXPECT_EQ(so_far.info.request_id(), "mine");
    if (so_far.messages == 3) {
      v1::AbortRequest abort;
      abort.set_request_id("mine");
      v1::AbortResponse response;
      grpc::ClientContext context;
      EXPECT_TRUE(harness->control().Abort(&context, abort, &response).ok());
    }
  });
  EXPECT_TRUE(answer.status.ok());
  EXPECT_EQ(answer.reason, v1::FINISH_REASON_ABORTED);
  EXPECT_LT(answer.usage.completion_tokens(), 4000);
  EXPECT_EQ(answer.usage.completion_tokens(), static_cast<int>(answer.token_ids.size()));
  v1::AbortRequest abort;
  abort.set_request_id("mine");
  v1::AbortResponse response;
  grpc::ClientContext context;
  EXPECT_EQ(harness->control().Abort(&context, abort, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST(ServerTest, ABackendFaultIsInternalAndTurnsHealth) {
  FakeBackendOptions fake;
  fake.step_time = std::chrono::milliseconds(1);
  const auto harness = Harness::Fake(fake);
  EXPECT_EQ(Health(*harness, ""), HealthStatus::SERVING);
  EXPECT_EQ(Health(*harness, "ferrite.v1.Inference"), HealthStatus::SERVING);
  harness->fake().FailWaitAt(5);
  v1::GenerateRequest request = OneTokenPrompt(50);
  request.mutable_stopping()->set_ignore_eos(true);
  const Answer answer = harness->Stream(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("the fake device broke"));
  EXPECT_EQ(harness->Stream(request).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(HealthBecomes(*harness, "", HealthStatus::NOT_SERVING));
  EXPECT_TRUE(HealthBecomes(*harness, "ferrite.v1.Inference", HealthStatus::NOT_SERVING));
}

TEST(ServerTest, AHungStepTurnsHealthAndABusyOneDoesNot) {
  ServerConfig config = Harness::DefaultConfig();
  config.server.stuck_step_seconds = 1;
  FakeBackendOptions fake;
  fake.step_time = std::chrono::milliseconds(50);
  const auto harness = Harness::Fake(fake, config);
  v1::GenerateRequest request = OneTokenPrompt(40);
  request.mutable_stopping()->set_ignore_eos(true);
  EXPECT_TRUE(harness->Stream(request).status.ok());  // two busy seconds
  EXPECT_EQ(Health(*harness, ""), HealthStatus::SERVING);
  harness->fake().HangAt(harness->fake().stats().steps + 3);
  auto answer = std::async(std::launch::async, [&] { return harness->Stream(request); });
  EXPECT_TRUE(HealthBecomes(*harness, "", HealthStatus::NOT_SERVING));
  harness->fake().ReleaseHang();
  EXPECT_TRUE(answer.get().status.ok());
  EXPECT_TRUE(HealthBecomes(*harness, "", HealthStatus::SERVING));
}

TEST(ServerTest, DrainFinishesStreamsAndRefusesNewOnes) {
  ServerConfig config = Harness::DefaultConfig();
  config.server.drain_grace_seconds = 0.2;
  FakeBackendOptions fake;
  fake.step_time = std::chrono::milliseconds(20);
  const auto harness = Harness::Fake(fake, config);
  v1::GenerateRequest request = OneTokenPrompt(50);
  request.mutable_stopping()->set_ignore_eos(true);
  auto running = std::async(std::launch::async, [&] { return harness->Stream(request); });
  while (harness->server().active_calls() == 0) {
  }
  auto drain =
      std::async(std::launch::async, [&] { return harness->server().Drain([] { return false; }); });
  EXPECT_TRUE(HealthBecomes(*harness, "ferrite.v1.Inference", HealthStatus::NOT_SERVING));
  EXPECT_EQ(Health(*harness, ""), HealthStatus::SERVING);
  EXPECT_TRUE(harness->Stream(OneTokenPrompt(1)).status.ok());  // the grace window still accepts
  std::this_thread::sleep_for(std::chrono::milliseconds(400));
  const Answer late = harness->Stream(OneTokenPrompt(1));
  EXPECT_EQ(late.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(late.status.error_message(), HasSubstr("draining"));
  EXPECT_TRUE(running.get().status.ok());
  EXPECT_EQ(drain.get(), 0);
}

TEST(ServerTest, DrainCancelsWhatOutlastsItsTime) {
  ServerConfig config = Harness::DefaultConfig();
  config.server.drain_timeout_seconds = 0.3;
  FakeBackendOptions fake;
  fake.step_time = std::chrono::milliseconds(20);
  const auto harness = Harness::Fake(fake, config);
  v1::GenerateRequest request = OneTokenPrompt(100);
  request.mutable_stopping()->set_ignore_eos(true);
  auto running = std::async(std::launch::async, [&] { return harness->Stream(request); });
  while (harness->server().engine().load()[0].steps == 0) {
  }
  EXPECT_EQ(harness->server().Drain([] { return false; }), 1);
  EXPECT_FALSE(running.get().status.ok());
}

TEST(ServerTest, StoppingAServerThatHangsDoesNotHang) {
  const auto harness = Harness::Fake(FakeBackendOptions());
  harness->fake().HangAt(2);
  auto running = std::async(std::launch::async, [&] { return harness->Stream(OneTokenPrompt(9)); });
  while (harness->server().engine().load()[0].steps == 0) {
  }
  auto drain =
      std::async(std::launch::async, [&] { return harness->server().Drain([] { return true; }); });
  EXPECT_FALSE(running.get().status.ok());
  EXPECT_EQ(drain.get(), 1);
  harness->fake().ReleaseHang();  // the worker's thread cannot be ended from outside
}

TEST(ServerTest, ControlTellsOfServerModelAndLoad) {
  const auto harness = Harness::Stories();
  grpc::ClientContext info_context, model_context, load_context;
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(harness->control().GetServerInfo(&info_context, {}, &info).ok());
  EXPECT_EQ(info.workers_size(), 1);
  EXPECT_EQ(info.workers(0).compute_type(), "fp32");
  EXPECT_EQ(info.workers(0).device(), "cpu");
  EXPECT_EQ(info.workers(0).mixed_step_tokens(), 256) << "what the backend suggests";
  EXPECT_GT(info.startup_seconds(), 0);
  v1::GetModelInfoResponse model;
  ASSERT_TRUE(harness->control().GetModelInfo(&model_context, {}, &model).ok());
  EXPECT_EQ(model.name(), "stories260k");
  EXPECT_EQ(model.architecture(), "LlamaForCausalLM");
  EXPECT_EQ(model.vocab_size(), 512);
  EXPECT_EQ(model.context_length(), 512);
  EXPECT_EQ(model.head_dim(), 8);
  EXPECT_THAT(model.eos_token_ids(), ElementsAre(1, 2));
  EXPECT_EQ(model.default_temperature(), 0);
  EXPECT_EQ(model.num_parameters(), 260032);
  harness->Stream(Greedy("Once", 10));
  ASSERT_TRUE(harness->BecomesIdle());
  v1::GetLoadResponse load;
  ASSERT_TRUE(harness->control().GetLoad(&load_context, {}, &load).ok());
  EXPECT_EQ(load.workers(0).kv_blocks_free(), load.workers(0).kv_blocks_total());
  EXPECT_EQ(load.workers(0).steps_total(), 10u);
  EXPECT_FALSE(load.draining());
}

// The same with every answer, until something that answers depend on is another one.
TEST(ServerTest, AnswersCarryTheFingerprint) {
  const auto fingerprint_of = [](bool deterministic) -> std::string {
    ServerConfig config = Harness::DefaultConfig();
    config.backend.deterministic = deterministic;
    const auto harness = Harness::Stories(config);
    grpc::ClientContext info_context, generate_context, embed_context;
    v1::GetServerInfoResponse info;
    EXPECT_TRUE(harness->control().GetServerInfo(&info_context, {}, &info).ok());
    EXPECT_EQ(info.deterministic(), deterministic);
    v1::GenerateResponse generated;
    EXPECT_TRUE(
        harness->inference().Generate(&generate_context, Greedy("Once", 2), &generated).ok());
    EXPECT_EQ(generated.info().fingerprint(), info.fingerprint());
    v1::EmbedRequest request;
    request.add_inputs()->set_text("Once");
    v1::EmbedResponse embedded;
    EXPECT_TRUE(harness->inference().Embed(&embed_context, request, &embedded).ok());
    EXPECT_EQ(embedded.fingerprint(), info.fingerprint());
    return info.fingerprint();
  };
  const std::string fingerprint = fingerprint_of(false);
  EXPECT_THAT(fingerprint, testing::MatchesRegex("fp-[0-9a-f]+"));
  EXPECT_EQ(fingerprint_of(false), fingerprint);
  EXPECT_NE(fingerprint_of(true), fingerprint);
}

TEST(ServerTest, ReflectionListsTheServices) {
  const auto harness = Harness::Fake(FakeBackendOptions());
  grpc::GenericStub stub(harness->NewChannel());
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  void* tag = nullptr;
  bool ok = false;
  const auto done = [&] { return queue.Next(&tag, &ok) && ok; };
  call->StartCall(nullptr);
  ASSERT_TRUE(done());
  // ServerReflectionRequest{list_services: ""}, by hand: the package has no client of it.
  const grpc::Slice slice(std::string("\x3a\x00", 2));
  call->Write(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions().set_last_message(), nullptr);
  ASSERT_TRUE(done());
  grpc::ByteBuffer response;
  call->Read(&response, nullptr);
  ASSERT_TRUE(done());
  grpc::Slice answer;
  ASSERT_TRUE(response.DumpToSingleSlice(&answer).ok());
  const std::string names(reinterpret_cast<const char*>(answer.begin()), answer.size());
  for (const char* service :
       {"ferrite.v1.Inference", "ferrite.v1.Control", "grpc.health.v1.Health"}) {
    EXPECT_THAT(names, HasSubstr(service));
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  ASSERT_TRUE(done());
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST(ServerTest, DetokenizeUndoesTokenize) {
  const auto harness = Harness::Fake(FakeBackendOptions());
  const std::string text = "Once upon a time, 日本 said \n hello";
  v1::TokenizeRequest tokenize;
  tokenize.set_text(text);
  v1::TokenizeResponse tokens;
  grpc::ClientContext tokenize_context, detokenize_context, keep_context;
  ASSERT_TRUE(harness->inference().Tokenize(&tokenize_context, tokenize, &tokens).ok());
  EXPECT_EQ(tokens.token_ids(0), 1);
  EXPECT_EQ(tokens.tokens(0), "<s>");
  EXPECT_EQ(tokens.tokens_size(), tokens.token_ids_size());
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_token_ids() = tokens.token_ids();
  v1::DetokenizeResponse back;
  ASSERT_TRUE(harness->inference().Detokenize(&detokenize_context, detokenize, &back).ok());
  EXPECT_EQ(back.text(), text);
  detokenize.set_skip_special_tokens(false);
  ASSERT_TRUE(harness->inference().Detokenize(&keep_context, detokenize, &back).ok());
  EXPECT_THAT(back.text(), HasSubstr("<s>"));
}

TEST(ServerTest, ConfiguredDefaultsApplyWhereModelAndRequestSayNothing) {
  ServerConfig config = Harness::DefaultConfig();
  config.defaults.temperature = 0.5;
  config.defaults.top_k = 9;
  config.defaults.top_p = 0.75;
  config.defaults.min_p = 0.25;
  config.defaults.max_new_tokens = 7;
  config.scheduler.max_context = 64;
  const auto harness = Harness::Stories(config);
  v1::GenerateRequest request;
  request.set_text("Once");
  const v1::UsedParams used = harness->Stream(request).info.used();
  EXPECT_EQ(used.temperature(), 0);  // the model's own: its file does not ask for sampling
  EXPECT_EQ(used.top_k(), 9);
  EXPECT_EQ(used.top_p(), 0.75f);
  EXPECT_EQ(used.min_p(), 0.25f);
  EXPECT_EQ(used.max_new_tokens(), 7);
  request.mutable_sampling()->set_top_k(3);
  request.mutable_stopping()->set_max_new_tokens(2);
  const Answer answer = harness->Stream(request);
  EXPECT_EQ(answer.info.used().top_k(), 3);
  EXPECT_EQ(answer.usage.completion_tokens(), 2);
  request.mutable_stopping()->set_max_new_tokens(64);
  EXPECT_THAT(harness->Stream(request).status.error_message(),
              HasSubstr("the context has 64 tokens"));
}

TEST(ServerTest, AnotherServerOnTheSamePortIsAClearError) {
  const auto harness = Harness::Fake(FakeBackendOptions());
  ServerConfig config = Harness::DefaultConfig();
  config.server.listen = harness->address();
  const Logger logger(LogFormat::kText, LogLevel::kError, [](std::string_view) {});
  const auto second = Server::Create(config, &logger, Clock::now());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr("server.listen is '" + harness->address() + "'"));
}

TEST(ServerTest, AModelFolderThatCannotBeReadIsAClearError) {
  ServerConfig config = Harness::DefaultConfig();
  config.model.path = "/nonexistent/model";
  const Logger logger(LogFormat::kText, LogLevel::kError, [](std::string_view) {});
  const auto server = Server::Create(config, &logger, Clock::now());
  EXPECT_EQ(server.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(server.status().message()), HasSubstr("/nonexistent/model"));
}

}  // namespace
}  // namespace ferrite

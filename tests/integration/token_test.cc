// Bearer tokens, limits, and what may be logged.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/token_file.h"
#include "tests/integration/harness.h"
#include "tests/integration/process.h"
#include "tests/integration/security_clients.h"

namespace ferrite {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using test::AllMethods;
using test::Answer;
using test::CallByPath;
using test::Connect;
using test::FakeBackendOptions;
using test::Greedy;
using test::Harness;
using test::PathOf;
using test::Process;
using test::ReplaceFile;
using ::testing::HasSubstr;
using ::testing::Not;

const char kReflection[] = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

std::string Line(const std::string& name, const std::string& token, const std::string& tail = "") {
  const Sha256Digest digest = Sha256(token);
  return absl::StrCat(name, ":",
                      absl::BytesToHexString(absl::string_view(
                          reinterpret_cast<const char*>(digest.data()), digest.size())),
                      tail, "\n");
}

std::string TempPath(const std::string& name) {
  return absl::StrCat(::testing::TempDir(), "/ferrite-", getpid(), "-", name);
}

ServerConfig WithTokens(const std::string& text) {
  ServerConfig config = Harness::DefaultConfig();
  config.auth.token_file = TempPath("tokens");
  config.auth.reload_seconds = 0.02;
  ReplaceFile(config.auth.token_file, text);
  return config;
}

const std::function<void(grpc::ClientContext&)> kAsOne = [](grpc::ClientContext& context) {
  context.AddMetadata("authorization", "Bearer one");
};

TEST(TokenTest, EveryRpcNeedsAToken) {
  const auto harness = Harness::Fake({}, WithTokens(Line("a", "one")));
  ASSERT_NE(harness, nullptr);
  const auto methods = AllMethods(FERRITE_SOURCE_DIR);
  ASSERT_GE(methods.size(), 9u);
  for (const auto* method : methods) {
    for (const char* wrong : {"", "Bearer two", "Bearer ", "Basic one", "one"}) {
      const grpc::Status status = CallByPath(harness->NewChannel(), PathOf(*method), "", wrong);
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED)
          << method->full_name() << " with '" << wrong << "': " << status.error_message();
    }
    EXPECT_NE(CallByPath(harness->NewChannel(), PathOf(*method), "", "Bearer one").error_code(),
              grpc::StatusCode::UNAUTHENTICATED)
        << method->full_name();
  }
}

TEST(TokenTest, TwoHeadersAreRefused) {
  const auto harness = Harness::Fake({}, WithTokens(Line("a", "one")));
  const Answer answer = harness->Stream(Greedy("Hi", 2), {}, [](grpc::ClientContext& context) {
    context.AddMetadata("authorization", "Bearer one");
    context.AddMetadata("authorization", "Bearer one");
  });
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST(TokenTest, HealthAndReflectionNeedNone) {
  const auto harness = Harness::Fake({}, WithTokens(Line("a", "one")));
  const auto health = grpc::health::v1::Health::NewStub(harness->NewChannel());
  grpc::ClientContext context;
  grpc::health::v1::HealthCheckResponse response;
  EXPECT_TRUE(health->Check(&context, {}, &response).ok());
  EXPECT_NE(CallByPath(harness->NewChannel(), kReflection, "", "").error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
}

TEST(TokenTest, AWrongTokenCostsNoEngineWork) {
  const auto harness = Harness::Fake({}, WithTokens(Line("a", "one")));
  ASSERT_TRUE(harness->Stream(Greedy("Hi", 3), {}, kAsOne).status.ok());
  ASSERT_TRUE(harness->BecomesIdle());
  const uint64_t before = harness->server().engine().load()[0].steps;
  ASSERT_GT(before, 0u);
  for (int i = 0; i < 200; ++i) {
    v1::GenerateResponse response;
    ASSERT_EQ(harness->Generate(Greedy("Hi", 3), &response).error_code(),
              grpc::StatusCode::UNAUTHENTICATED);
    ASSERT_EQ(harness->Stream(Greedy("Hi", 3)).status.error_code(),
              grpc::StatusCode::UNAUTHENTICATED);
  }
  ASSERT_TRUE(harness->BecomesIdle());
  EXPECT_EQ(harness->server().engine().load()[0].steps, before);
}

TEST(TokenTest, BoundsTheGenerationsOfATokenAndSaysWhose) {
  FakeBackendOptions slow;
  slow.step_time = std::chrono::milliseconds(10);
  const auto harness =
      Harness::Fake(slow, WithTokens(Line("team-a", "one", " max_requests=1") + Line("b", "two")));
  const auto as_two = [](grpc::ClientContext& context) {
    context.AddMetadata("authorization", "Bearer two");
  };
  bool asked = false;
  const Answer answer = harness->Stream(
      Greedy("Hi", 50),
      [&](grpc::ClientContext&, const Answer&) {
        if (std::exchange(asked, true)) return;
        const Answer refused = harness->Stream(Greedy("Hi", 2), {}, kAsOne);
        EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
        EXPECT_EQ(refused.status.error_message(),
                  "token 'team-a' has 1 requests in flight; its limit (max_requests) is 1");
        EXPECT_NE(refused.status.error_details(), "") << "advice when to try again";
        EXPECT_EQ(CallByPath(harness->NewChannel(), "/ferrite.v1.Control/GetLoad", "", "Bearer one")
                      .error_code(),
                  grpc::StatusCode::OK);
        EXPECT_TRUE(harness->Stream(Greedy("Hi", 2), {}, as_two).status.ok());
      },
      kAsOne);
  EXPECT_TRUE(asked);
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
}

TEST(TokenTest, APlaceIsFreeAsSoonAsTheClientHasItsAnswer) {
  const auto harness = Harness::Fake({}, WithTokens(Line("a", "one", " max_requests=1")));
  for (int i = 0; i < 300; ++i) {
    const Answer answer = harness->Stream(Greedy("Hi", 2), {}, kAsOne);
    ASSERT_TRUE(answer.status.ok()) << i << ": " << answer.status.error_message();
    grpc::ClientContext context;
    kAsOne(context);
    v1::GenerateResponse response;
    const grpc::Status status =
        harness->inference().Generate(&context, Greedy("Hi", i % 2 == 0 ? 2 : -1), &response);
    ASSERT_NE(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << i;
  }
}

TEST(TokenTest, TheFileIsReadAgainWhileStreamsRun) {
  FakeBackendOptions slow;
  slow.step_time = std::chrono::milliseconds(10);
  const ServerConfig config = WithTokens(Line("a", "one"));
  const auto harness = Harness::Fake(slow, config);
  const auto code = [&](const char* authorization) {
    return CallByPath(harness->NewChannel(), "/ferrite.v1.Control/GetLoad", "", authorization)
        .error_code();
  };
  bool swapped = false;
  const Answer answer = harness->Stream(
      Greedy("Hi", 60),
      [&](grpc::ClientContext&, const Answer&) {
        if (std::exchange(swapped, true)) return;
        ReplaceFile(config.auth.token_file, Line("b", "two"));
        while (code("Bearer two") != grpc::StatusCode::OK) {
        }
        EXPECT_EQ(code("Bearer one"), grpc::StatusCode::UNAUTHENTICATED);
      },
      kAsOne);
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.token_ids.size(), 60u);
}

TEST(TokenTest, WorksOverAUnixSocket) {
  ServerConfig config = WithTokens(Line("a", "one"));
  config.server.listen = "unix:" + TempPath("socket");
  const auto harness = Harness::Fake({}, config);
  ASSERT_NE(harness, nullptr);
  const auto channel = Connect(config.server.listen);
  const std::string path = "/ferrite.v1.Control/GetLoad";
  EXPECT_EQ(CallByPath(channel, path, "", "").error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(CallByPath(channel, path, "", "Bearer one").error_code(), grpc::StatusCode::OK);
}

TEST(LimitsTest, PromptsAndOutputsAboveThemAreRefused) {
  ServerConfig config = Harness::DefaultConfig();
  config.limits.max_prompt_tokens = 5;
  config.limits.max_new_tokens = 7;
  const auto harness = Harness::Fake({}, config);
  v1::GenerateRequest request = Greedy("", 7);
  for (const int id : {1, 2, 3, 4, 5}) request.mutable_token_ids()->add_ids(id);
  EXPECT_TRUE(harness->Stream(request).status.ok());
  request.mutable_stopping()->set_max_new_tokens(8);
  const grpc::Status too_many = harness->Stream(request).status;
  EXPECT_EQ(too_many.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(too_many.error_message(),
            "stopping.max_new_tokens is 8; this server's limit (limits.max_new_tokens) is 7");
  request.mutable_stopping()->clear_max_new_tokens();
  request.mutable_stopping()->set_ignore_eos(true);
  const Answer unset = harness->Stream(request);
  EXPECT_EQ(unset.token_ids.size(), 7u) << "the limit is what an unset max_new_tokens means";
  request.mutable_stopping()->set_min_new_tokens(8);
  EXPECT_THAT(harness->Stream(request).status.error_message(),
              HasSubstr("stopping.min_new_tokens is 8; this server's limit"));
  request.mutable_stopping()->clear_min_new_tokens();
  request.mutable_token_ids()->add_ids(6);
  const grpc::Status too_long = harness->Stream(request).status;
  EXPECT_EQ(too_long.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(too_long.error_message(),
            "token_ids gives a prompt of 6 tokens; this server's limit "
            "(limits.max_prompt_tokens) is 5");
  EXPECT_THAT(harness->Stream(Greedy("Once upon a time there was a cat", 2)).status.error_message(),
              HasSubstr("text gives a prompt of "));
}

// Puts `marker` into every string of the message, except for the id, which is there to be logged,
// and one message into every repeated field.
void FillStrings(const std::string& marker, int depth, Message* message) {
  const auto* reflection = message->GetReflection();
  for (int i = 0; i < message->GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message->GetDescriptor()->field(i);
    if (field->is_map() || depth > 4 || field->name() == "request_id") continue;
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      FillStrings(marker, depth + 1,
                  field->is_repeated() ? reflection->AddMessage(message, field)
                                       : reflection->MutableMessage(message, field));
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
      field->is_repeated() ? reflection->AddString(message, field, marker)
                           : reflection->SetString(message, field, marker);
    }
  }
}

TEST(LogTest, HoldsNothingOfARequestEvenAtDebugLevel) {
  const std::string marker = "xyzzy-marker";
  Process server({FERRITE_SERVER_BINARY, "--server.listen=127.0.0.1:0", "--log.level=debug",
                  "--server.drain_grace_seconds=0", "--limits.max_prompt_tokens=60",
                  "--model.path=" FERRITE_SOURCE_DIR "/models/stories260k"});
  const auto channel = Connect("127.0.0.1:" + server.AwaitPort());
  std::vector<std::string> requests;
  v1::GenerateRequest good = Greedy(marker, 5);
  good.mutable_stopping()->add_stop_strings(marker);
  v1::GenerateRequest long_one = Greedy("", 5);
  for (int i = 0; i < 50; ++i) long_one.mutable_text()->append(marker);
  v1::GenerateRequest wrong = good;
  wrong.mutable_sampling()->set_top_p(7);
  v1::TokenizeRequest tokenize;
  tokenize.set_text(marker);
  const std::string broken = "\x1a\x0d\xff" + marker;  // field 3, `text`: no UTF-8
  google::protobuf::DynamicMessageFactory messages;
  int calls = 0;
  for (const auto* method : AllMethods(FERRITE_SOURCE_DIR)) {
    const std::unique_ptr<Message> filled(messages.GetPrototype(method->input_type())->New());
    FillStrings(marker, 0, filled.get());
    for (const std::string& request :
         {good.SerializeAsString(), long_one.SerializeAsString(), wrong.SerializeAsString(),
          tokenize.SerializeAsString(), filled->SerializeAsString(), broken, marker}) {
      CallByPath(channel, PathOf(*method), request, "Bearer " + marker, std::chrono::seconds(2));
      ++calls;
    }
  }
  EXPECT_GE(calls, 9 * 7);
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait(), 0);
  EXPECT_THAT(server.err(), HasSubstr("stopped"));
  EXPECT_THAT(server.err() + server.out(), Not(HasSubstr(marker)));
}

TEST(LogTest, TokensInPlainTextAreAWarningUnlessTheyStayOnTheMachine) {
  const std::string tokens = TempPath("plain-tokens");
  ReplaceFile(tokens, Line("a", "one"));
  const auto warns = [&](const std::string& listen) {
    Process server({FERRITE_SERVER_BINARY, "--server.listen=" + listen,
                    "--auth.token_file=" + tokens,
                    "--model.path=" FERRITE_SOURCE_DIR "/models/stories260k"});
    server.AwaitPort();
    return server.err().find("WARNING tokens_in_plain_text") != std::string::npos;
  };
  EXPECT_TRUE(warns("0.0.0.0:0"));
  EXPECT_FALSE(warns("127.0.0.1:0"));
  EXPECT_FALSE(warns("unix:" + TempPath("plain-socket")));
}

TEST(LogTest, AWrongTokenFileEndsTheStart) {
  const std::string tokens = TempPath("wrong-tokens");
  ReplaceFile(tokens, "a:b\n");
  Process server({FERRITE_SERVER_BINARY, "--server.listen=127.0.0.1:0",
                  "--auth.token_file=" + tokens,
                  "--model.path=" FERRITE_SOURCE_DIR "/models/stories260k"});
  EXPECT_EQ(server.Wait(), 1);
  EXPECT_THAT(server.err(), HasSubstr("start_failed"));
  EXPECT_THAT(server.err(), HasSubstr(tokens + ":1: the line of 'a' has no SHA-256"));
}

}  // namespace
}  // namespace ferrite

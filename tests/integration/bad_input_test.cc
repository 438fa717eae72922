// What a client can get wrong: the status code and a message that names field, value and bound.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <grpcpp/generic/generic_stub.h>

#include <cmath>
#include <functional>
#include <future>
#include <limits>
#include <thread>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/integration/harness.h"

namespace ferrite {
namespace {

using test::Answer;
using test::FakeBackendOptions;
using test::Greedy;
using test::Harness;
using ::testing::HasSubstr;

using Change = std::function<void(v1::GenerateRequest&)>;

class BadInputTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { harness_ = Harness::Stories().release(); }
  static void TearDownTestSuite() {
    EXPECT_TRUE(harness_->BecomesIdle());
    delete harness_;
  }

  // The changed request is refused alike by both RPCs, and costs nothing.
  static void ExpectRefused(const Change& change, grpc::StatusCode code,
                            const std::string& message) {
    v1::GenerateRequest request = Greedy("Once upon a time", 10);
    change(request);
    const Answer streamed = harness_->Stream(request);
    EXPECT_EQ(streamed.status.error_code(), code) << streamed.status.error_message();
    EXPECT_THAT(streamed.status.error_message(), HasSubstr(message));
    EXPECT_EQ(streamed.messages, 0);
    v1::GenerateResponse response;
    const grpc::Status unary = harness_->Generate(request, &response);
    EXPECT_EQ(unary.error_code(), code);
    EXPECT_EQ(unary.error_message(), streamed.status.error_message());
  }
  static void ExpectInvalid(const Change& change, const std::string& message) {
    ExpectRefused(change, grpc::StatusCode::INVALID_ARGUMENT, message);
  }
  static void ExpectServed(const Change& change) {
    v1::GenerateRequest request = Greedy("Once upon a time", 10);
    change(request);
    const Answer answer = harness_->Stream(request);
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  }

  static Harness* harness_;
};
Harness* BadInputTest::harness_ = nullptr;

TEST_F(BadInputTest, PromptWithoutTokens) {
  ExpectInvalid([](auto& r) { r.clear_prompt(); }, "the prompt is missing: set text or token_ids");
  ExpectInvalid(
      [](auto& r) {
        r.set_text("");
        r.set_add_special_tokens(false);
      },
      "text gives a prompt of 0 tokens; at least 1 is needed");
  ExpectInvalid([](auto& r) { r.mutable_token_ids(); }, "token_ids gives a prompt of 0 tokens");
  ExpectServed([](auto& r) { r.set_text(""); });  // BOS is added
}

TEST_F(BadInputTest, PromptLongerThanTheContext) {
  const auto tokens = [](int count) {
    return [count](v1::GenerateRequest& r) {
      for (int i = 0; i < count; ++i) {
        r.mutable_token_ids()->add_ids(300);
      }
      r.mutable_stopping()->clear_max_new_tokens();
    };
  };
  ExpectServed(tokens(511));
  ExpectInvalid(tokens(512), "the prompt has 512 tokens; it must have at most 511");
  ExpectInvalid(
      [&](auto& r) {
        tokens(500)(r);
        r.mutable_stopping()->set_max_new_tokens(13);
      },
      "stopping.max_new_tokens is 13; it must be at most 12");
}

TEST_F(BadInputTest, TextThatIsNotUtf8) {
  // A C++ client sends such bytes with no more than a log line.
  ExpectInvalid([](auto& r) { r.set_text("ab\xFFz"); }, "text is not valid UTF-8 at byte 2 of 4");
  ExpectInvalid([](auto& r) { r.mutable_stopping()->add_stop_strings("\xC3"); },
                "stopping.stop_strings is not valid UTF-8 at byte 0 of 1");
}

TEST_F(BadInputTest, TokenIdsOutOfRange) {
  ExpectInvalid(
      [](auto& r) {
        r.mutable_token_ids()->add_ids(1);
        r.mutable_token_ids()->add_ids(512);
      },
      "prompt token 1 is 512; the vocabulary has ids 0 to 511");
  ExpectInvalid([](auto& r) { r.mutable_token_ids()->add_ids(-1); }, "prompt token 0 is -1");
  ExpectInvalid([](auto& r) { r.mutable_stopping()->add_stop_token_ids(512); },
                "stopping.stop_token_ids[0] is 512; the vocabulary has ids 0 to 511");
}

TEST_F(BadInputTest, SamplingJustOutsideItsRange) {
  const float below_zero = -std::numeric_limits<float>::denorm_min();
  const float nan = std::nanf("");
  ExpectInvalid([&](auto& r) { r.mutable_sampling()->set_temperature(below_zero); },
                "sampling.temperature is -1.4013e-45; it must be from 0 to 100");
  ExpectInvalid([&](auto& r) { r.mutable_sampling()->set_temperature(100.001f); },
                "sampling.temperature is 100.001; it must be from 0 to 100");
  ExpectInvalid([&](auto& r) { r.mutable_sampling()->set_temperature(nan); },
                "sampling.temperature is nan");
  ExpectServed([](auto& r) { r.mutable_sampling()->set_temperature(100); });
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_top_k(-1); },
                "sampling.top_k is -1; it must be 0 (all) or more");
  ExpectServed([](auto& r) { r.mutable_sampling()->set_top_k(0); });
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_top_p(0); },
                "sampling.top_p is 0; it must be above 0 and at most 1");
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_top_p(1.0001f); },
                "sampling.top_p is 1.0001; it must be above 0 and at most 1");
  ExpectInvalid([&](auto& r) { r.mutable_sampling()->set_top_p(nan); }, "sampling.top_p is nan");
  ExpectServed([](auto& r) { r.mutable_sampling()->set_top_p(1); });
  ExpectInvalid([&](auto& r) { r.mutable_sampling()->set_min_p(below_zero); },
                "sampling.min_p is -1.4013e-45; it must be from 0 to 1");
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_min_p(1.0001f); },
                "sampling.min_p is 1.0001; it must be from 0 to 1");
  ExpectServed([](auto& r) { r.mutable_sampling()->set_min_p(1); });
}

TEST_F(BadInputTest, StoppingJustOutsideItsRange) {
  ExpectInvalid([](auto& r) { r.mutable_stopping()->set_max_new_tokens(0); },
                "stopping.max_new_tokens is 0; it must be 1 or more");
  ExpectInvalid([](auto& r) { r.mutable_stopping()->set_min_new_tokens(-1); },
                "stopping.min_new_tokens is -1; it must be 0 or more");
  ExpectInvalid([](auto& r) { r.mutable_stopping()->add_stop_strings(""); },
                "stopping.stop_strings[0] has 0 bytes; it must have from 1 to 1024");
  ExpectInvalid([](auto& r) { r.mutable_stopping()->add_stop_strings(std::string(1025, 'x')); },
                "stopping.stop_strings[0] has 1025 bytes");
  ExpectInvalid(
      [](auto& r) {
        for (int i = 0; i < 17; ++i) {
          r.mutable_stopping()->add_stop_strings("x");
        }
      },
      "the number of stopping.stop_strings is 17; it must be at most 16");
  ExpectInvalid([](auto& r) { r.set_request_id(""); }, "request_id has 0 bytes");
}

TEST_F(BadInputTest, PenaltiesAndBiasesOutOfRange) {
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_presence_penalty(2.5f); },
                "sampling.presence_penalty is 2.5; it must be from -2 to 2");
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_frequency_penalty(-3); },
                "sampling.frequency_penalty is -3; it must be from -2 to 2");
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_frequency_penalty(std::nanf("")); },
                "sampling.frequency_penalty is nan");
  ExpectInvalid([](auto& r) { r.mutable_sampling()->set_repetition_penalty(0); },
                "sampling.repetition_penalty is 0; it must be above 0 and at most 100");
  ExpectInvalid([](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[3] = 101; },
                "sampling.logit_bias[3] is 101; it must be from -100 to 100");
  ExpectInvalid([](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[512] = 1; },
                "the key of sampling.logit_bias[512] is 512; the vocabulary has ids 0 to 511");
  ExpectInvalid(
      [](auto& r) {
        for (int id = 0; id < 1025; ++id) {
          (*r.mutable_sampling()->mutable_logit_bias())[id] = 1;
        }
      },
      "the number of sampling.logit_bias is 1025; it must be at most 1024");
  ExpectInvalid([](auto& r) { r.mutable_sampling()->add_allowed_token_ids(-1); },
                "sampling.allowed_token_ids[0] is -1; the vocabulary has ids 0 to 511");
  ExpectInvalid(
      [](auto& r) {
        r.mutable_sampling()->add_banned_token_ids(7);
        r.mutable_sampling()->add_banned_token_ids(512);
      },
      "sampling.banned_token_ids[1] is 512");
}

TEST_F(BadInputTest, ListsThatLeaveNoToken) {
  ExpectInvalid(
      [](auto& r) {
        r.mutable_sampling()->add_allowed_token_ids(300);
        r.mutable_sampling()->add_banned_token_ids(300);
      },
      "sampling.allowed_token_ids and sampling.banned_token_ids leave no token to sample");
  const Change only_the_end = [](auto& r) {
    r.mutable_sampling()->add_allowed_token_ids(300);
    r.mutable_stopping()->add_stop_token_ids(300);
    r.mutable_stopping()->set_min_new_tokens(2);
  };
  ExpectInvalid(only_the_end, "stopping.min_new_tokens, which is 2, bars end tokens");
  ExpectServed([&](auto& r) {
    only_the_end(r);
    r.mutable_sampling()->add_allowed_token_ids(301);
  });
}

TEST_F(BadInputTest, FieldsThatContradictEachOther) {
  ExpectInvalid([](auto& r) { r.mutable_stopping()->set_min_new_tokens(11); },
                "stopping.min_new_tokens is 11; it must be at most stopping.max_new_tokens, which "
                "is 10");
  ExpectInvalid(
      [](auto& r) {
        r.mutable_token_ids()->add_ids(1);
        r.set_add_special_tokens(true);
      },
      "add_special_tokens is set; it applies to text");
  ExpectInvalid([](auto& r) { r.mutable_stopping()->set_include_stop_string(true); },
                "stopping.include_stop_string is true; stopping.stop_strings is empty");
}

TEST_F(BadInputTest, UnknownModel) {
  ExpectRefused([](auto& r) { r.set_model("gpt-5"); }, grpc::StatusCode::NOT_FOUND,
                "model is 'gpt-5'; this server has 'stories260k'");
  ExpectServed([](auto& r) { r.set_model("stories260k"); });
}

TEST_F(BadInputTest, FieldsOfLaterVersionsAreNamed) {
  const std::vector<std::pair<std::string, Change>> fields = {
      {"messages", [](auto& r) { r.add_messages(); }},
      {"response_format", [](auto& r) { r.mutable_response_format(); }},
  };
  for (const auto& [name, change] : fields) {
    ExpectRefused(change, grpc::StatusCode::UNIMPLEMENTED, name + " is not served by this build");
  }
}

TEST_F(BadInputTest, OutputAndPlaceInTheQueue) {
  const auto refused = [this](const Change& change, const std::string& message) {
    ExpectRefused(change, grpc::StatusCode::INVALID_ARGUMENT, message);
  };
  refused([](auto& r) { r.mutable_output()->set_n(0); }, "output.n is 0; it must be from 1 to 64");
  refused([](auto& r) { r.mutable_output()->set_n(65); }, "output.n is 65");
  refused([](auto& r) { r.mutable_output()->set_top_logprobs(21); },
          "output.top_logprobs is 21; it must be from 0 to 20");
  refused([](auto& r) { r.mutable_output()->set_top_logprobs(-1); }, "output.top_logprobs is -1");
  refused(
      [](auto& r) {
        r.mutable_output()->set_top_logprobs(2);
        r.mutable_output()->set_logprobs(false);
      },
      "output.top_logprobs is 2; output.logprobs is false");
  refused([](auto& r) { r.set_priority(101); }, "priority is 101; it must be from -100 to 100");
  refused([](auto& r) { r.set_priority(-101); }, "priority is -101");
  refused([](auto& r) { r.set_cache_salt(std::string(257, 's')); },
          "the length of cache_salt in bytes is 257; it must be at most 256");
  refused(
      [](auto& r) {
        r.set_cache_salt("s");
        r.set_cache_prompt(false);
      },
      "cache_salt is set; it applies to cached prompts, and cache_prompt is false");
  ExpectServed([](auto& r) {
    r.set_cache_salt("s");
    r.set_cache_prompt(true);
    r.set_priority(-100);
    r.set_truncate_prompt(true);
  });
}

TEST_F(BadInputTest, MessageOverTheSizeLimit) {
  ExpectRefused([](auto& r) { r.set_text(std::string(5 << 20, 'x')); },
                grpc::StatusCode::RESOURCE_EXHAUSTED, "larger than max (5");
}

TEST_F(BadInputTest, BytesThatAreNoMessage) {
  grpc::GenericStub stub(harness_->NewChannel());
  const grpc::Slice slice("\x12\xFFgarbage");
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  grpc::ClientContext context;
  std::promise<grpc::Status> answered;
  stub.UnaryCall(&context, "/ferrite.v1.Inference/Tokenize", grpc::StubOptions(), &request,
                 &response, [&](grpc::Status status) { answered.set_value(std::move(status)); });
  const grpc::Status status = answered.get_future().get();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("are no valid ferrite.v1.TokenizeRequest"));
}

TEST_F(BadInputTest, TokenizeAndDetokenize) {
  v1::TokenizeRequest tokenize;
  v1::TokenizeResponse tokens;
  tokenize.set_text("a\xE2\x82");
  {
    grpc::ClientContext context;
    const grpc::Status status = harness_->inference().Tokenize(&context, tokenize, &tokens);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("text is not valid UTF-8 at byte 1"));
  }
  v1::DetokenizeRequest detokenize;
  v1::DetokenizeResponse text;
  detokenize.add_token_ids(1);
  detokenize.add_token_ids(99999);
  grpc::ClientContext context;
  const grpc::Status status = harness_->inference().Detokenize(&context, detokenize, &text);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("99999"));
}

TEST_F(BadInputTest, DeadlineThatHasPassed) {
  const Answer answer = harness_->Stream(Greedy("Once", 400), {}, [](grpc::ClientContext& context) {
    context.set_deadline(std::chrono::system_clock::now() - std::chrono::seconds(1));
  });
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(answer.messages, 0);
}

TEST(QueueFullTest, WhatCouldNeverBeTakenIsNoLoad) {
  ServerConfig config = Harness::DefaultConfig();
  config.scheduler.max_waiting = 3;
  config.scheduler.max_waiting_tokens = 20;
  const auto harness = Harness::Fake(FakeBackendOptions(), config);
  ASSERT_NE(harness, nullptr);
  const auto generate = [&](int32_t n, int prompt_tokens) {
    v1::GenerateRequest request = Greedy("", 1);
    for (int i = 0; i < prompt_tokens; ++i) request.mutable_token_ids()->add_ids(300 + i);
    request.mutable_output()->set_n(n);
    v1::GenerateResponse response;
    return harness->Generate(request, &response);
  };
  EXPECT_EQ(generate(3, 20).error_message(), "") << "what fits is taken";
  const grpc::Status samples = generate(4, 1);
  EXPECT_EQ(samples.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(samples.error_message(),
            "output.n is 4; the queue (scheduler.max_waiting) has room for 3");
  const grpc::Status tokens = generate(1, 21);
  EXPECT_EQ(tokens.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(tokens.error_message(),
            "the prompt has 21 tokens; the queue (scheduler.max_waiting_tokens) has room for 20");
}

TEST(QueueFullTest, AnswersResourceExhaustedWithRetryAdvice) {
  ServerConfig config = Harness::DefaultConfig();
  config.scheduler.max_running = 1;
  config.scheduler.max_waiting = 1;
  const auto harness = Harness::Fake(FakeBackendOptions(), config);
  harness->fake().HangAt(1);
  std::vector<std::thread> clients;
  std::vector<Answer> answers(2);
  for (int i = 0; i < 2; ++i) {
    clients.emplace_back([&, i] { answers[i] = harness->Stream(Greedy("Once", 5)); });
    // The first must have started before the second may wait.
    const auto has_come = [&] {
      const WorkerLoad load = harness->server().engine().load()[0];
      return i == 0 ? load.requests_running > 0 : load.requests_waiting > 0;
    };
    while (!has_come()) {
    }
  }
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const grpc::Status status = harness->inference().Generate(&context, Greedy("Once", 5), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("1 requests wait, and scheduler.max_waiting is 1"));
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  google::rpc::RetryInfo retry;
  ASSERT_EQ(details.details_size(), 1);
  ASSERT_TRUE(details.details(0).UnpackTo(&retry));
  EXPECT_EQ(retry.retry_delay().seconds(), 1);  // nothing has ended yet to estimate from
  const auto pushback = context.GetServerTrailingMetadata().find("grpc-retry-pushback-ms");
  ASSERT_NE(pushback, context.GetServerTrailingMetadata().end());
  EXPECT_EQ(pushback->second, "1000");
  harness->fake().ReleaseHang();
  for (std::thread& client : clients) {
    client.join();
  }
  for (const Answer& answer : answers) {
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  }
}

}  // namespace
}  // namespace ferrite

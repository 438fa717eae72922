// What comes back beside the text, through gRPC: samples, log-probabilities (against transformers,
// tests/fixtures/sampling), echo, special tokens, and prompts that are cut.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <future>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "tests/integration/harness.h"

namespace ferrite {
namespace {

using test::Harness;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr double kTolerance = 1e-4;  // fp32 against float64

// A stream's choices, each put together from its messages.
struct Streamed {
  grpc::Status status;
  v1::PromptInfo info;
  std::map<int32_t, v1::Choice> choices;
  v1::Usage usage;
};

Streamed StreamChoices(Harness& harness, const v1::GenerateRequest& request) {
  Streamed streamed;
  grpc::ClientContext context;
  const auto reader = harness.inference().GenerateStream(&context, request);
  v1::GenerateStreamResponse message;
  while (reader->Read(&message)) {
    if (message.has_started()) {
      EXPECT_TRUE(streamed.choices.empty()) << "started is not first";
      streamed.info = message.started();
    }
    const auto& choices =
        message.has_finished() ? message.finished().choices() : message.delta().choices();
    for (const v1::Choice& part : choices) {
      v1::Choice& choice = streamed.choices[part.index()];
      EXPECT_EQ(choice.finish_reason(), v1::FINISH_REASON_UNSPECIFIED) << "after its last";
      const std::string text = choice.text() + part.text();
      choice.MergeFrom(part);
      choice.set_text(text);
    }
    streamed.usage.MergeFrom(message.finished().usage());
  }
  streamed.status = reader->Finish();
  return streamed;
}

v1::GenerateResponse Generate(Harness& harness, const v1::GenerateRequest& request) {
  v1::GenerateResponse response;
  const grpc::Status status = harness.Generate(request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response;
}

v1::GenerateRequest Drawn(const std::string& text, int32_t max_new_tokens, int32_t n) {
  v1::GenerateRequest request = test::Greedy(text, max_new_tokens);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(7);
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_output()->set_n(n);
  return request;
}

TEST(OutputTest, SamplesDifferAndEachIsItsOwn) {
  const auto harness = Harness::Stories();
  const std::string text = "Once upon a time there was a little dog who liked to play in the park";
  const v1::GenerateResponse eight = Generate(*harness, Drawn(text, 24, 8));
  ASSERT_EQ(eight.choices_size(), 8);
  std::set<std::string> texts;
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(eight.choices(i).index(), i);
    EXPECT_EQ(eight.choices(i).token_ids_size(), 24);
    EXPECT_EQ(eight.choices(i).finish_reason(), v1::FINISH_REASON_LENGTH);
    texts.insert(eight.choices(i).text());
  }
  EXPECT_GE(texts.size(), 7u);
  EXPECT_EQ(eight.usage().completion_tokens(), 8 * 24);
  EXPECT_EQ(eight.usage().total_tokens(), 8 * 24 + eight.info().prompt_tokens());

  // Sample i is the same however many there are, and however it comes.
  const v1::GenerateResponse three = Generate(*harness, Drawn(text, 24, 3));
  const Streamed streamed = StreamChoices(*harness, Drawn(text, 24, 8));
  ASSERT_TRUE(streamed.status.ok()) << streamed.status.error_message();
  ASSERT_EQ(streamed.choices.size(), 8u);
  for (int i = 0; i < 8; ++i) {
    const v1::Choice& whole = eight.choices(i);
    const v1::Choice& joined = streamed.choices.at(i);
    EXPECT_EQ(joined.text(), whole.text());
    EXPECT_THAT(joined.token_ids(), ElementsAreArray(whole.token_ids()));
    EXPECT_EQ(joined.finish_reason(), whole.finish_reason());
    if (i < 3) {
      EXPECT_EQ(three.choices(i).text(), whole.text());
    }
  }
  EXPECT_EQ(streamed.usage.completion_tokens(), 8 * 24);
  EXPECT_EQ(Generate(*harness, Drawn(text, 24, 1)).choices(0).text(), eight.choices(0).text());
  EXPECT_TRUE(harness->BecomesIdle());
}

TEST(OutputTest, EachSampleEndsAtItsOwnStop) {
  const auto harness = Harness::Stories();
  v1::GenerateRequest request = Drawn("Once upon a time", 60, 6);
  request.mutable_stopping()->add_stop_strings("the");
  const v1::GenerateResponse whole = Generate(*harness, request);
  const Streamed streamed = StreamChoices(*harness, request);
  int stopped = 0;
  std::set<int> lengths;
  for (int i = 0; i < 6; ++i) {
    const v1::Choice& choice = whole.choices(i);
    EXPECT_EQ(streamed.choices.at(i).text(), choice.text());
    EXPECT_EQ(streamed.choices.at(i).finish_reason(), choice.finish_reason());
    stopped += choice.finish_reason() == v1::FINISH_REASON_STOP ? 1 : 0;
    lengths.insert(choice.token_ids_size());
    EXPECT_EQ(choice.text().find("the"), std::string::npos);
  }
  EXPECT_GE(stopped, 2);
  EXPECT_GE(lengths.size(), 2u);
}

void ExpectLogprobs(const google::protobuf::RepeatedPtrField<v1::TokenLogprob>& logprobs,
                    const nlohmann::json& expected, int num_top) {
  ASSERT_EQ(logprobs.size(), static_cast<int>(expected.size()));
  for (int t = 0; t < logprobs.size(); ++t) {
    SCOPED_TRACE(t);
    const v1::TokenLogprob& token = logprobs[t];
    EXPECT_EQ(token.token_id(), expected[t]["id"]);
    EXPECT_NEAR(token.logprob(), expected[t]["logprob"].get<double>(), kTolerance);
    ASSERT_EQ(token.top_size(), num_top);
    for (int i = 0; i < num_top; ++i) {
      // Two that are nearly as likely may have changed places.
      EXPECT_NEAR(token.top(i).logprob(), expected[t]["top"][i][1].get<double>(), kTolerance);
      bool found = false;
      for (const nlohmann::json& likely : expected[t]["top"]) {
        if (likely[0] == token.top(i).token_id()) {
          found = true;
          EXPECT_NEAR(token.top(i).logprob(), likely[1].get<double>(), kTolerance);
        }
      }
      EXPECT_TRUE(found || i == 19) << token.top(i).token_id();
    }
  }
}

TEST(OutputTest, LogprobsAreTheReference) {
  const auto harness = Harness::Stories();
  std::ifstream file(FERRITE_SOURCE_DIR "/tests/fixtures/sampling/logprobs.json");
  const nlohmann::json cases = nlohmann::json::parse(file)["cases"];
  for (const nlohmann::json& reference : cases) {
    for (const int num_top : {0, 5, 20}) {
      SCOPED_TRACE(testing::Message() << reference["sampling"] << " top " << num_top);
      v1::GenerateRequest request = test::Greedy("", 24);
      request.clear_prompt();
      for (const int32_t id : reference["prompt"]) {
        request.mutable_token_ids()->add_ids(id);
      }
      request.mutable_stopping()->set_ignore_eos(true);
      const nlohmann::json& sampling = reference["sampling"];
      if (sampling.contains("repetition_penalty")) {
        request.mutable_sampling()->set_repetition_penalty(sampling["repetition_penalty"]);
      }
      if (sampling.contains("frequency_penalty")) {
        request.mutable_sampling()->set_frequency_penalty(sampling["frequency_penalty"]);
      }
      request.mutable_output()->set_logprobs(true);
      request.mutable_output()->set_prompt_logprobs(true);
      request.mutable_output()->set_top_logprobs(num_top);
      const v1::GenerateResponse whole = Generate(*harness, request);
      ExpectLogprobs(whole.choices(0).logprobs(), reference["logprobs"], num_top);
      ExpectLogprobs(whole.info().prompt_logprobs(), reference["prompt_logprobs"], num_top);
      const Streamed streamed = StreamChoices(*harness, request);
      ExpectLogprobs(streamed.choices.at(0).logprobs(), reference["logprobs"], num_top);
      ExpectLogprobs(streamed.info.prompt_logprobs(), reference["prompt_logprobs"], num_top);
    }
  }
}

TEST(OutputTest, LogprobsAreOneATokenWithItsBytes) {
  const auto harness = Harness::Stories();
  v1::GenerateRequest request = Drawn("Once upon a time", 40, 2);
  request.mutable_output()->set_top_logprobs(3);  // asks for logprobs too
  const v1::GenerateResponse response = Generate(*harness, request);
  for (const v1::Choice& choice : response.choices()) {
    std::string text;
    ASSERT_EQ(choice.logprobs_size(), choice.token_ids_size());
    for (int t = 0; t < choice.logprobs_size(); ++t) {
      EXPECT_EQ(choice.logprobs(t).token_id(), choice.token_ids(t));
      EXPECT_LT(choice.logprobs(t).logprob(), 0);
      text += choice.logprobs(t).token();
    }
    EXPECT_EQ(text, choice.text());
  }
  EXPECT_EQ(response.info().prompt_logprobs_size(), 0);
}

TEST(OutputTest, EchoPutsThePromptFirst) {
  const auto harness = Harness::Stories();
  v1::GenerateRequest request = test::Greedy("Once upon  a time", 10);
  const std::string plain = Generate(*harness, request).choices(0).text();
  request.mutable_output()->set_echo(true);
  request.mutable_output()->set_n(2);
  const v1::GenerateResponse whole = Generate(*harness, request);
  const Streamed streamed = StreamChoices(*harness, request);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(whole.choices(i).text(), "Once upon  a time" + plain);
    EXPECT_EQ(streamed.choices.at(i).text(), "Once upon  a time" + plain);
    EXPECT_EQ(whole.choices(i).token_ids_size(), 10);
  }

  v1::GenerateRequest by_ids = test::Greedy("", 1);
  const int32_t begin = 1;
  by_ids.mutable_token_ids()->add_ids(begin);
  by_ids.mutable_token_ids()->add_ids(403);
  by_ids.mutable_output()->set_echo(true);
  const std::string skipped = Generate(*harness, by_ids).choices(0).text();
  by_ids.mutable_output()->set_skip_special_tokens(false);
  EXPECT_EQ(Generate(*harness, by_ids).choices(0).text(), "<s> " + skipped);
}

TEST(OutputTest, SpecialTokensAreShownIfAskedFor) {
  const auto harness = Harness::Stories();
  v1::GenerateRequest request = test::Greedy("Once", 3);
  request.mutable_sampling()->add_allowed_token_ids(1);
  request.mutable_stopping()->set_ignore_eos(true);
  EXPECT_EQ(Generate(*harness, request).choices(0).text(), "");
  request.mutable_output()->set_skip_special_tokens(false);
  EXPECT_EQ(Generate(*harness, request).choices(0).text(), "<s><s><s>");
}

TEST(OutputTest, TokenIdsCanBeLeftOut) {
  const auto harness = Harness::Stories();
  v1::GenerateRequest request = test::Greedy("Once", 5);
  request.mutable_output()->set_return_token_ids(false);
  const v1::GenerateResponse whole = Generate(*harness, request);
  EXPECT_EQ(whole.choices(0).token_ids_size(), 0);
  EXPECT_NE(whole.choices(0).text(), "");
  EXPECT_EQ(whole.usage().completion_tokens(), 5);
  EXPECT_EQ(StreamChoices(*harness, request).choices.at(0).token_ids_size(), 0);
}

TEST(OutputTest, ALongPromptIsCutIfAskedFor) {
  ServerConfig config = Harness::DefaultConfig();
  config.scheduler.max_context = 40;
  const auto harness = Harness::Stories(config);
  v1::GenerateRequest request = test::Greedy("", 8);
  for (int i = 0; i < 100; ++i) {
    request.mutable_token_ids()->add_ids(300 + i);
  }
  v1::GenerateResponse refused;
  EXPECT_EQ(harness->Generate(request, &refused).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  request.set_truncate_prompt(true);
  const v1::GenerateResponse cut = Generate(*harness, request);
  EXPECT_EQ(cut.info().prompt_tokens(), 32);
  EXPECT_EQ(cut.info().truncated_tokens(), 68);
  v1::GenerateRequest same = test::Greedy("", 8);
  for (int i = 68; i < 100; ++i) {
    same.mutable_token_ids()->add_ids(300 + i);
  }
  EXPECT_EQ(cut.choices(0).text(), Generate(*harness, same).choices(0).text());

  // A text keeps the token that its tokenizer puts first.
  std::string text;
  for (int i = 0; i < 60; ++i) {
    text += "The dog ran. ";
  }
  v1::GenerateRequest long_text = test::Greedy(text, 8);
  long_text.set_truncate_prompt(true);
  long_text.mutable_output()->set_echo(true);
  long_text.mutable_output()->set_skip_special_tokens(false);
  const v1::GenerateResponse cut_text = Generate(*harness, long_text);
  EXPECT_EQ(cut_text.info().prompt_tokens(), 32);
  EXPECT_GT(cut_text.info().truncated_tokens(), 68);
  EXPECT_THAT(cut_text.choices(0).text(), StartsWith("<s>"));
  EXPECT_THAT(cut_text.choices(0).text(), HasSubstr("The dog ran."));

  v1::GenerateRequest fits = test::Greedy("Once", 8);
  fits.set_truncate_prompt(true);
  EXPECT_EQ(Generate(*harness, fits).info().truncated_tokens(), 0);
}

TEST(OutputTest, AnAnswerHasNoMoreLogprobsThanItCanCarry) {
  test::FakeBackendOptions fake;
  fake.num_blocks = 2048;
  fake.max_sequence_length = 8192;
  const auto harness = Harness::Fake(fake);
  v1::GenerateRequest request = test::Greedy("Once", 3000);
  request.mutable_output()->set_n(64);
  request.mutable_output()->set_top_logprobs(20);
  v1::GenerateResponse response;
  const grpc::Status status = harness->Generate(request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(),
              HasSubstr("output.n is 64, output.top_logprobs 20 and max_new_tokens 3000, which "
                        "makes up to 4032000 log-probabilities; one answer has at most 4000000"));
}

TEST(OutputTest, WhatWasComputedBeforeIsCached) {
  const auto harness = Harness::Stories(Harness::DefaultConfig());
  std::string text;
  while (text.size() < 400) text += "Once there was a dog. It ran to the park with a red ball. ";
  std::string answer;
  const auto cached = [&](const std::function<void(v1::GenerateRequest&)>& change) {
    v1::GenerateRequest request = test::Greedy(text, 20);
    change(request);
    v1::GenerateResponse response;
    const grpc::Status status = harness->Generate(request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(answer.empty() ? response.choices(0).text() : answer, response.choices(0).text());
    answer = response.choices(0).text();
    const int32_t most = (response.usage().prompt_tokens() - 1) / 16 * 16;
    EXPECT_GE(most, 96);
    EXPECT_THAT(response.usage().cached_tokens(), ::testing::AnyOf(0, most));
    return response.usage().cached_tokens() > 0;
  };
  EXPECT_FALSE(cached([](auto& r) { r.set_cache_prompt(false); }));
  EXPECT_FALSE(cached([](auto&) {}));
  EXPECT_TRUE(cached([](auto&) {}));
  EXPECT_TRUE(cached([](auto& r) { r.set_cache_prompt(true); }));
  EXPECT_FALSE(cached([](auto& r) { r.set_cache_prompt(false); }));
  EXPECT_FALSE(cached([](auto& r) { r.set_cache_salt("a"); }));
  EXPECT_TRUE(cached([](auto& r) { r.set_cache_salt("a"); }));
  EXPECT_FALSE(cached([](auto& r) { r.set_cache_salt("b"); }));
  EXPECT_FALSE(cached([](auto& r) { r.mutable_output()->set_prompt_logprobs(true); }));
}

TEST(OutputTest, TheCacheCanBeSwitchedOff) {
  ServerConfig config = Harness::DefaultConfig();
  config.kv_cache.prefix_caching = false;
  const auto harness = Harness::Stories(config);
  for (int i = 0; i < 2; ++i) {
    v1::GenerateResponse response;
    ASSERT_TRUE(harness
                    ->Generate(test::Greedy("Once there was a dog. It ran to the park with a red "
                                            "ball. It ran and ran until it was tired.",
                                            3),
                               &response)
                    .ok());
    EXPECT_GT(response.usage().prompt_tokens(), 17);
    EXPECT_EQ(response.usage().cached_tokens(), 0);
  }
}

TEST(OutputTest, HigherPriorityGoesFirst) {
  ServerConfig config = Harness::DefaultConfig();
  config.scheduler.max_running = 1;
  const auto harness = Harness::Fake({}, config);
  harness->fake().HangAt(1);
  const auto send = [&](int32_t priority) {
    return std::async(std::launch::async, [&, priority] {
      v1::GenerateRequest request = test::Greedy("Once", 3);
      request.set_priority(priority);
      v1::GenerateResponse response;
      EXPECT_TRUE(harness->Generate(request, &response).ok());
    });
  };
  const auto wait_for = [&](int32_t running, int32_t waiting) {
    const Clock::time_point limit = Clock::now() + std::chrono::seconds(20);
    WorkerLoad load;
    do {
      load = harness->server().engine().load()[0];
    } while ((load.requests_running != running || load.requests_waiting != waiting) &&
             Clock::now() < limit);
    EXPECT_EQ(load.requests_waiting, waiting);
  };
  // The first runs before there are others, which wait for its place.
  auto first = send(-100);
  wait_for(1, 0);
  auto low = send(-1);
  wait_for(1, 1);
  auto middle = send(0);
  wait_for(1, 2);
  auto high = send(100);
  wait_for(1, 3);
  // Each takes three steps. While the device hangs, only what came before can have ended.
  harness->fake().HangAt(7);
  first.get();
  high.get();
  harness->fake().HangAt(10);
  middle.get();
  harness->fake().ReleaseHang();
  low.get();
}

}  // namespace
}  // namespace ferrite

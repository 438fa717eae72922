// Several choices of one request, and answers as JSON.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "client/choice_writer.h"
#include "client/json.h"
#include "tests/client/fake_server.h"

namespace ferrite {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::StartsWith;

v1::Choice MakeChoice(int32_t index, const std::string& text,
                      v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED) {
  v1::Choice choice;
  choice.set_index(index);
  choice.set_text(text);
  choice.set_finish_reason(reason);
  return choice;
}

TEST(ChoiceWriterTest, HoldsBackWhatIsNotItsTurn) {
  std::ostringstream out;
  ChoiceWriter writer(out, /*several=*/true);
  writer.Write(MakeChoice(1, "b1"));
  EXPECT_EQ(out.str(), "");
  writer.Write(MakeChoice(0, "a1"));
  writer.Write(MakeChoice(2, "c1", v1::FINISH_REASON_LENGTH));
  EXPECT_EQ(out.str(), "--- choice 0 ---\na1");
  writer.Write(MakeChoice(1, "b2\n", v1::FINISH_REASON_STOP));
  writer.Write(MakeChoice(0, "a2"));
  EXPECT_EQ(out.str(), "--- choice 0 ---\na1a2");
  writer.Write(MakeChoice(0, "", v1::FINISH_REASON_LENGTH));
  EXPECT_EQ(out.str(), "--- choice 0 ---\na1a2\n--- choice 1 ---\nb1b2\n--- choice 2 ---\nc1");
  writer.Finish();
  EXPECT_THAT(out.str(), EndsWith("c1\n"));
  EXPECT_THAT(writer.reasons(), ElementsAre(Pair(0, "length"), Pair(1, "stop"), Pair(2, "length")));
}

TEST(ChoiceWriterTest, WritesWhatHadComeWhenTheAnswerBreaksOff) {
  std::ostringstream out;
  ChoiceWriter writer(out, true);
  writer.Write(MakeChoice(0, "a"));
  writer.Write(MakeChoice(3, "d"));
  writer.Finish();
  EXPECT_EQ(out.str(), "--- choice 0 ---\na\n--- choice 3 ---\nd\n");
}

class ChoicesTest : public testing::Test {
 protected:
  ClientResult Generate(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"generate", "x", "--server", server_.address()});
    return RunWith(arguments);
  }

  void AddDelta(const v1::Choice& choice) {
    *server_.inference.messages.emplace_back().mutable_delta()->add_choices() = choice;
  }

  FakeServer server_;
};

TEST_F(ChoicesTest, AreShownOneAfterAnother) {
  server_.inference.messages.emplace_back().mutable_started()->set_prompt_tokens(4);
  AddDelta(MakeChoice(1, "second, "));
  AddDelta(MakeChoice(0, "first"));
  AddDelta(MakeChoice(1, "ended", v1::FINISH_REASON_STOP));
  auto* finished = server_.inference.messages.emplace_back().mutable_finished();
  *finished->add_choices() = MakeChoice(0, "!", v1::FINISH_REASON_LENGTH);
  finished->mutable_usage()->set_prompt_tokens(4);
  finished->mutable_usage()->set_completion_tokens(22);
  finished->mutable_timings()->set_time_to_first_token_seconds(0.5);
  finished->mutable_timings()->set_total_seconds(2.5);
  const ClientResult result = Generate({"-n", "2"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "--- choice 0 ---\nfirst!\n--- choice 1 ---\nsecond, ended\n");
  // 20 tokens after the first two, in two seconds.
  EXPECT_EQ(result.err,
            "4 prompt tokens, 22 completion tokens, finish reasons length, stop, time to first "
            "token 500.0 ms, 10.0 tokens/s\n");
}

TEST_F(ChoicesTest, AreShownWithoutStreamingToo) {
  *server_.inference.response.add_choices() = MakeChoice(0, "a", v1::FINISH_REASON_LENGTH);
  *server_.inference.response.add_choices() = MakeChoice(1, "b", v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(Generate({"-n", "2", "--no-stream"}).out, "--- choice 0 ---\na\n--- choice 1 ---\nb\n");
  EXPECT_FALSE(server_.inference.streamed);
}

TEST_F(ChoicesTest, JsonIsTheWholeResponseInALine) {
  v1::GenerateResponse& response = server_.inference.response;
  response.mutable_info()->set_request_id("r\"1");
  response.mutable_info()->mutable_used()->set_seed(18446744073709551615u);
  *response.add_choices() = MakeChoice(0, "caf\xC3\xA9\n", v1::FINISH_REASON_LENGTH);
  v1::TokenLogprob* logprob = response.mutable_choices(0)->add_logprobs();
  logprob->set_token("\xC3");
  logprob->set_logprob(-0.25f);
  logprob->add_top()->set_token_id(7);
  const ClientResult result = Generate({"--json", "--logprobs"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 1);
  EXPECT_FALSE(server_.inference.streamed);
  const nlohmann::json json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json["info"]["request_id"], "r\"1");
  EXPECT_EQ(json["info"]["used"]["seed"], "18446744073709551615");
  EXPECT_EQ(json["choices"][0]["index"], 0);  // zeros are said
  EXPECT_EQ(json["choices"][0]["text"], "caf\xC3\xA9\n");
  EXPECT_EQ(json["choices"][0]["finish_reason"], "FINISH_REASON_LENGTH");
  EXPECT_EQ(json["choices"][0]["logprobs"][0]["token"], "ww==");  // base64
  EXPECT_EQ(json["choices"][0]["logprobs"][0]["logprob"], -0.25);
  EXPECT_EQ(json["choices"][0]["logprobs"][0]["top"][0]["token_id"], 7);
}

TEST_F(ChoicesTest, StreamedJsonIsALineForEachMessage) {
  server_.inference.deltas = {"a", "b"};
  server_.inference.response.mutable_usage()->set_completion_tokens(2);
  const ClientResult result = Generate({"--json", "--stream"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  std::istringstream lines(result.out);
  std::vector<nlohmann::json> messages;
  for (std::string line; std::getline(lines, line);) {
    messages.push_back(nlohmann::json::parse(line));
  }
  ASSERT_EQ(messages.size(), 4u);
  EXPECT_TRUE(messages[0].contains("started"));
  EXPECT_EQ(messages[2]["delta"]["choices"][0]["text"], "b");
  EXPECT_EQ(messages[3]["finished"]["usage"]["completion_tokens"], 2);
}

TEST_F(ChoicesTest, AFailureLeavesNoJson) {
  server_.inference.status =
      grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full");
  const ClientResult result = Generate({"--json"});
  EXPECT_EQ(result.exit_code, 18);
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(result.err, "ferrite: RESOURCE_EXHAUSTED: the queue is full\n");
}

TEST(JsonTest, ReadsBothSpellingsAndNamesWhatIsUnknown) {
  v1::GenerateRequest request;
  EXPECT_TRUE(
      FromJson(R"({"token_ids":{"ids":[1,2]},"stopping":{"maxNewTokens":3}})", &request).ok());
  EXPECT_THAT(request.token_ids().ids(), ElementsAre(1, 2));
  EXPECT_EQ(request.stopping().max_new_tokens(), 3);
  EXPECT_THAT(FromJson(R"({"sampling":{"topk":1}})", &request).message(), HasSubstr("topk"));
  EXPECT_FALSE(FromJson("[]", &request).ok());
  EXPECT_FALSE(FromJson("", &request).ok());
}

TEST(JsonTest, OverridingReplacesListsAndKeepsTheRest) {
  v1::GenerateRequest base;
  base.set_text("base");
  base.mutable_sampling()->set_top_k(5);
  (*base.mutable_sampling()->mutable_logit_bias())[1] = 1;
  base.mutable_stopping()->add_stop_strings("a");
  base.mutable_stopping()->add_stop_token_ids(9);
  v1::GenerateRequest over;
  over.mutable_token_ids()->add_ids(4);
  over.mutable_sampling()->set_temperature(0);
  (*over.mutable_sampling()->mutable_logit_bias())[2] = 2;
  over.mutable_stopping()->add_stop_strings("b");
  Override(over, &base);
  EXPECT_THAT(base.token_ids().ids(), ElementsAre(4));
  EXPECT_TRUE(base.sampling().has_temperature());
  EXPECT_EQ(base.sampling().top_k(), 5);
  EXPECT_THAT(base.sampling().logit_bias(), ElementsAre(Pair(2, 2.0f)));
  EXPECT_THAT(base.stopping().stop_strings(), ElementsAre("b"));
  EXPECT_THAT(base.stopping().stop_token_ids(), ElementsAre(9));
}

TEST(JsonTest, AnErrorMayHoldAnyBytes) {
  const std::string line = ErrorJson(3, grpc::Status(grpc::StatusCode::INTERNAL, "bad \xff\n"));
  EXPECT_THAT(line, StartsWith(R"({"index":3,"error":{"code":"INTERNAL","message":"bad )"));
  EXPECT_TRUE(nlohmann::json::accept(line));
}

}  // namespace
}  // namespace ferrite

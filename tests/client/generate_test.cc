#include "client/generate.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <chrono>
#include <sstream>
#include <string>
#include <vector>

#include "client/cli.h"
#include "tests/client/fake_server.h"

namespace ferrite {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class GenerateTest : public testing::Test {
 protected:
  ClientResult Generate(std::vector<std::string> arguments, const std::string& input = "",
                        bool in_is_terminal = true) {
    arguments.insert(arguments.begin(), {"generate", "--server", server_.address()});
    return RunWith(arguments, input, in_is_terminal);
  }

  void ExpectRequest(const v1::GenerateRequest& expected) {
    using google::protobuf::util::MessageDifferencer;
    EXPECT_TRUE(MessageDifferencer::Equals(server_.inference.generate_request, expected))
        << server_.inference.generate_request.DebugString();
  }

  FakeServer server_;
};

TEST_F(GenerateTest, WhatIsNotGivenStaysUnset) {
  EXPECT_EQ(Generate({"Once"}).exit_code, 0);
  v1::GenerateRequest expected;
  expected.set_text("Once");
  ExpectRequest(expected);  // neither sampling nor stopping nor output is there
  EXPECT_TRUE(server_.inference.streamed);
}

TEST_F(GenerateTest, EveryOptionReachesItsField) {
  const ClientResult result = Generate({"Once",
                                        "--max-new-tokens",
                                        "7",
                                        "--min-new-tokens=2",
                                        "--temperature",
                                        "0.5",
                                        "--top-k",
                                        "40",
                                        "--top-p",
                                        "0.25",
                                        "--min-p",
                                        "0.125",
                                        "--seed",
                                        "18446744073709551615",
                                        "--repetition-penalty=1.5",
                                        "--frequency-penalty",
                                        "-0.5",
                                        "--presence-penalty=0.25",
                                        "--logit-bias",
                                        "7=-1.5",
                                        "--logit-bias=8=2",
                                        "--allowed-token-ids=7,8,9",
                                        "--banned-token-ids",
                                        "9",
                                        "--stop",
                                        "{}",
                                        "--stop",
                                        "",
                                        "--stop=[a,b]",
                                        "--stop-token-id",
                                        "2",
                                        "--stop-token-id",
                                        "3",
                                        "--include-stop-string",
                                        "--ignore-eos",
                                        "--no-special-tokens",
                                        "--request-id",
                                        "r1",
                                        "--model",
                                        "m",
                                        "-n",
                                        "3",
                                        "--top-logprobs=2",
                                        "--logprobs",
                                        "--prompt-logprobs",
                                        "--json",
                                        "--echo",
                                        "--keep-special-tokens",
                                        "--no-token-ids",
                                        "--priority=-7",
                                        "--no-cache-prompt",
                                        "--cache-salt",
                                        "team a",
                                        "--truncate-prompt"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  v1::GenerateRequest expected;
  expected.set_text("Once");
  expected.set_model("m");
  expected.set_request_id("r1");
  expected.set_add_special_tokens(false);
  expected.mutable_sampling()->set_temperature(0.5f);
  expected.mutable_sampling()->set_top_k(40);
  expected.mutable_sampling()->set_top_p(0.25f);
  expected.mutable_sampling()->set_min_p(0.125f);
  expected.mutable_sampling()->set_seed(18446744073709551615u);
  expected.mutable_sampling()->set_repetition_penalty(1.5f);
  expected.mutable_sampling()->set_frequency_penalty(-0.5f);
  expected.mutable_sampling()->set_presence_penalty(0.25f);
  (*expected.mutable_sampling()->mutable_logit_bias())[7] = -1.5f;
  (*expected.mutable_sampling()->mutable_logit_bias())[8] = 2;
  for (const int id : {7, 8, 9}) expected.mutable_sampling()->add_allowed_token_ids(id);
  expected.mutable_sampling()->add_banned_token_ids(9);
  expected.mutable_stopping()->set_max_new_tokens(7);
  expected.mutable_stopping()->set_min_new_tokens(2);
  for (const char* stop : {"{}", "", "[a,b]"}) expected.mutable_stopping()->add_stop_strings(stop);
  for (const int id : {2, 3}) expected.mutable_stopping()->add_stop_token_ids(id);
  expected.mutable_stopping()->set_include_stop_string(true);
  expected.mutable_stopping()->set_ignore_eos(true);
  expected.mutable_output()->set_n(3);
  expected.mutable_output()->set_logprobs(true);
  expected.mutable_output()->set_top_logprobs(2);
  expected.mutable_output()->set_prompt_logprobs(true);
  expected.mutable_output()->set_echo(true);
  expected.mutable_output()->set_skip_special_tokens(false);
  expected.mutable_output()->set_return_token_ids(false);
  expected.set_priority(-7);
  expected.set_cache_prompt(false);
  expected.set_cache_salt("team a");
  expected.set_truncate_prompt(true);
  ExpectRequest(expected);
}

TEST_F(GenerateTest, ZeroIsNotUnset) {
  EXPECT_EQ(Generate({"x", "--temperature=0", "--top-k=0", "--seed=0"}).exit_code, 0);
  const v1::SamplingParams& sampling = server_.inference.generate_request.sampling();
  EXPECT_TRUE(sampling.has_temperature());
  EXPECT_TRUE(sampling.has_top_k());
  EXPECT_TRUE(sampling.has_seed());
  EXPECT_FALSE(sampling.has_top_p());
  EXPECT_FALSE(sampling.has_min_p());
}

TEST_F(GenerateTest, OutOfRangeKnobsAreLeftToTheServerToRefuse) {
  EXPECT_EQ(Generate({"x", "--temperature", "-1", "--top-k", "-5"}).exit_code, 0);
  EXPECT_EQ(server_.inference.generate_request.sampling().temperature(), -1.0f);
  EXPECT_EQ(server_.inference.generate_request.sampling().top_k(), -5);
}

TEST_F(GenerateTest, ThePromptComesFromTheArgumentOrFromStandardInput) {
  struct Case {
    std::vector<std::string> arguments;
    std::string input;
    bool terminal;
    std::string prompt;
  };
  for (const Case& c : std::vector<Case>{{{"[a,b]"}, "unread", false, "[a,b]"},
                                         {{""}, "unread", false, ""},
                                         {{"{}"}, "", true, "{}"},
                                         {{"--", "--stop"}, "", true, "--stop"},
                                         {{"-"}, "typed\n", true, "typed"},
                                         {{}, "piped\n\n", false, "piped\n"},
                                         {{}, "caf\xC3\xA9", false, "caf\xC3\xA9"}}) {
    const ClientResult result = Generate(c.arguments, c.input, c.terminal);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_TRUE(server_.inference.generate_request.has_text());
    EXPECT_EQ(server_.inference.generate_request.text(), c.prompt);
  }
}

TEST_F(GenerateTest, ThePromptMayBeTokenIds) {
  EXPECT_EQ(Generate({"--token-ids", "1, 22,-3"}, "unread", false).exit_code, 0);
  EXPECT_FALSE(server_.inference.generate_request.has_text());
  EXPECT_THAT(server_.inference.generate_request.token_ids().ids(), ElementsAre(1, 22, -3));
}

TEST_F(GenerateTest, WrongUsageIsRefusedBeforeTheServerIsAsked) {
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{},
                                             {"x", "y"},
                                             {"x", "--token-ids", "1"},
                                             {"--token-ids", ""},
                                             {"--token-ids", "1,a"},
                                             {"--token-ids", "2147483648"},
                                             {"x", "--logprobs"},
                                             {"x", "--top-logprobs", "2"},
                                             {"x", "--stream", "--no-stream"},
                                             {"x", "--concurrency", "2"},
                                             {"x", "--batch", "-"},
                                             {"--request-id", "r", "--batch", "-"},
                                             {"--batch", "/nowhere/batch.jsonl"},
                                             {"--batch", "/"},
                                             {"x", "--stop-token-id", "a"},
                                             {"x", "--logit-bias", "7"},
                                             {"x", "--logit-bias", "a=1"},
                                             {"x", "--logit-bias", "7=b"},
                                             {"x", "--banned-token-ids", "a"},
                                             {"x", "--seed", "-1"},
                                             {"x", "--seed", ""},
                                             {"x", "--seed", "18446744073709551616"},
                                             {"x", "--top-k", "1.5"},
                                             {"x", "--top-k", "2147483648"},
                                             {"x", "--temperature", "warm"},
                                             {"x", "--timeout", "0"},
                                             {"x", "--timeout", "nan"},
                                             {"x", "--nonsense"},
                                             {"not \xff utf-8"},
                                             {"x", "--stop", "\xff"}}) {
    const ClientResult result = Generate(arguments);
    EXPECT_EQ(result.exit_code, 2) << testing::PrintToString(arguments);
    EXPECT_THAT(result.err, StartsWith("ferrite: ")) << testing::PrintToString(arguments);
  }
  EXPECT_EQ(Generate({}, "\xff", false).exit_code, 2);
  EXPECT_EQ(server_.inference.calls, 0);
}

TEST_F(GenerateTest, PrintsTheTextAndThenTheStatistics) {
  server_.inference.deltas = {"Hello", ", ", "world"};
  v1::Choice* choice = server_.inference.response.add_choices();
  choice->set_text("!");
  choice->set_finish_reason(v1::FINISH_REASON_LENGTH);
  server_.inference.response.mutable_usage()->set_prompt_tokens(12);
  server_.inference.response.mutable_usage()->set_completion_tokens(41);
  server_.inference.response.mutable_timings()->set_time_to_first_token_seconds(0.0125);
  server_.inference.response.mutable_timings()->set_total_seconds(0.5125);
  const ClientResult result = Generate({"x"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "Hello, world!\n");
  // 40 tokens after the first in half a second.
  EXPECT_EQ(result.err,
            "12 prompt tokens, 41 completion tokens, finish reason length, time to first token "
            "12.5 ms, 80.0 tokens/s\n");
  EXPECT_EQ(Generate({"x", "--quiet"}).err, "");

  const ClientResult once = Generate({"x", "--no-stream"});
  EXPECT_EQ(once.out, "!\n");
  EXPECT_EQ(once.err, result.err);
}

TEST_F(GenerateTest, StatisticsSayWhatStopped) {
  v1::Choice* choice = server_.inference.response.add_choices();
  choice->set_finish_reason(v1::FINISH_REASON_STOP);
  choice->mutable_stop()->set_token_id(2);
  EXPECT_THAT(Generate({"x"}).err, HasSubstr("finish reason stop (token 2)\n"));
  choice->mutable_stop()->set_stop_string("end");
  EXPECT_THAT(Generate({"x"}).err, HasSubstr("finish reason stop (stop string)\n"));
  choice->set_finish_reason(v1::FINISH_REASON_ABORTED);
  EXPECT_THAT(Generate({"x"}).err, HasSubstr("finish reason aborted\n"));
}

TEST_F(GenerateTest, AddsALineFeedOnlyWhereTheTextHasNone) {
  server_.inference.deltas = {"line\n"};
  EXPECT_EQ(Generate({"x"}).out, "line\n");
  server_.inference.deltas = {};
  EXPECT_EQ(Generate({"x"}).out, "");
}

TEST_F(GenerateTest, EchoHasTwoNames) {
  for (const char* name : {"--echo", "--echo-prompt"}) {
    EXPECT_EQ(Generate({"Once", name}).exit_code, 0);
    EXPECT_TRUE(server_.inference.generate_request.output().echo());
  }
}

TEST_F(GenerateTest, AFailureIsReportedAfterTheTextThatCame) {
  server_.inference.deltas = {"some text"};
  server_.inference.status = grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "top_k is -1");
  const ClientResult result = Generate({"x"});
  EXPECT_EQ(result.exit_code, 13);
  EXPECT_EQ(result.out, "some text\n");
  EXPECT_EQ(result.err, "ferrite: INVALID_ARGUMENT: top_k is -1\n");
  EXPECT_EQ(Generate({"x", "--no-stream"}).exit_code, 13);
}

TEST_F(GenerateTest, AStreamWithoutItsLastMessageIsAFailure) {
  server_.inference.send_finished = false;
  const ClientResult result = Generate({"x"});
  EXPECT_EQ(result.exit_code, 23);
  EXPECT_THAT(result.err, HasSubstr("INTERNAL"));
}

TEST_F(GenerateTest, TheTimeoutEndsTheCall) {
  server_.inference.wait_for_cancel = true;
  const auto start = std::chrono::steady_clock::now();
  const ClientResult result = Generate({"x", "--timeout", "0.3"});
  EXPECT_EQ(result.exit_code, 14);
  EXPECT_THAT(result.err,
              AllOf(StartsWith("ferrite: DEADLINE_EXCEEDED"), Not(HasSubstr("tokens"))));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

// Remembers what had been written whenever it was flushed, and may refuse to write.
class FlushRecorder : public std::stringbuf {
 public:
  std::vector<std::string> flushes;
  bool broken = false;

 protected:
  int sync() override {
    flushes.push_back(str());
    return broken ? -1 : 0;
  }
};

TEST_F(GenerateTest, EachDeltaIsFlushed) {
  server_.inference.deltas = {"a", "b", "", "c"};
  FlushRecorder recorder;
  std::istringstream in;
  std::ostream out(&recorder);
  std::ostringstream err;
  const std::vector<const char*> argv = {"ferrite", "generate", "x", "--server",
                                         server_.address().c_str()};
  EXPECT_EQ(RunClient(static_cast<int>(argv.size()), argv.data(), {in, true, out, err}), 0);
  EXPECT_THAT(recorder.flushes, ElementsAre("a", "ab", "abc", "abc\n"));
}

TEST_F(GenerateTest, AReaderThatLeftCancelsTheCall) {
  server_.inference.deltas = {"a"};
  server_.inference.wait_for_cancel = true;
  FlushRecorder recorder;
  recorder.broken = true;
  std::istringstream in;
  std::ostream out(&recorder);
  std::ostringstream err;
  const std::vector<const char*> argv = {"ferrite", "generate", "x", "--server",
                                         server_.address().c_str()};
  EXPECT_EQ(RunClient(static_cast<int>(argv.size()), argv.data(), {in, true, out, err}), 11);
}

}  // namespace
}  // namespace ferrite

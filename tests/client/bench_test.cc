#include "client/bench.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "client/bench_report.h"
#include "client/bench_requests.h"
#include "tests/client/fake_server.h"

namespace ferrite {
namespace {

using ::testing::AllOf;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Lt;
using ::testing::SizeIs;

v1::GetModelInfoResponse SmallModel() {
  v1::GetModelInfoResponse model;
  model.set_name("small");
  model.set_vocab_size(10);
  model.set_context_length(200);
  model.set_bos_token_id(1);
  model.add_eos_token_ids(2);
  model.add_eos_token_ids(9);
  return model;
}

BenchWorkload Workload(int32_t prompt_tokens, uint64_t seed = 0) {
  BenchWorkload workload;
  workload.prompt_tokens = prompt_tokens;
  workload.output_tokens = 8;
  workload.seed = seed;
  return workload;
}

std::string Prompt(const BenchRequests& requests, int64_t index) {
  return requests.Make(index).token_ids().SerializeAsString();
}

TEST(BenchRequestsTest, AskForAnExactLength) {
  const auto requests = BenchRequests::Create(Workload(20), SmallModel());
  ASSERT_TRUE(requests.ok()) << requests.status();
  const v1::GenerateRequest request = requests->Make(0);
  EXPECT_THAT(request.token_ids().ids(), SizeIs(20));
  EXPECT_EQ(request.stopping().max_new_tokens(), 8);
  EXPECT_TRUE(request.stopping().ignore_eos());
  EXPECT_TRUE(request.sampling().has_temperature());
  EXPECT_EQ(request.sampling().temperature(), 0);
  EXPECT_FALSE(request.has_model());
}

TEST(BenchRequestsTest, DrawEveryIdButTheSpecialOnes) {
  const auto requests = BenchRequests::Create(Workload(90), SmallModel());
  ASSERT_TRUE(requests.ok()) << requests.status();
  std::set<int32_t> drawn;
  for (int64_t index = 0; index < 20; ++index) {
    const v1::GenerateRequest request = requests->Make(index);
    drawn.insert(request.token_ids().ids().begin(), request.token_ids().ids().end());
  }
  EXPECT_EQ(drawn, (std::set<int32_t>{0, 3, 4, 5, 6, 7, 8}));
}

TEST(BenchRequestsTest, DependOnSeedAndIndexAlone) {
  const auto requests = BenchRequests::Create(Workload(30), SmallModel());
  const auto same = BenchRequests::Create(Workload(30), SmallModel());
  const auto reseeded = BenchRequests::Create(Workload(30, uint64_t{1} << 40), SmallModel());
  ASSERT_TRUE(requests.ok() && same.ok() && reseeded.ok());
  const std::string fifth = Prompt(*requests, 5);
  for (const int64_t other : {0, 4, 6}) EXPECT_NE(Prompt(*requests, other), fifth);
  EXPECT_EQ(Prompt(*requests, 5), fifth) << "whatever was made before";
  EXPECT_EQ(Prompt(*same, 5), fifth);
  EXPECT_NE(Prompt(*reseeded, 5), fifth);
  EXPECT_NE(requests->Make(5).sampling().seed(), requests->Make(6).sampling().seed());
}

TEST(BenchRequestsTest, AModelWithoutOrdinaryTokensIsRefused) {
  v1::GetModelInfoResponse model = SmallModel();
  model.set_vocab_size(0);
  const auto requests = BenchRequests::Create(Workload(20), model);
  EXPECT_THAT(std::string(requests.status().message()), HasSubstr("vocab_size 0"));
}

class BenchTest : public testing::Test {
 protected:
  BenchTest() {
    server_.control.model = SmallModel();
    server_.control.server.set_version("1.2.3");
    server_.inference.deltas = {"a", "b"};
    server_.inference.delta_ids = {{3}, {4, 5}};
    v1::Choice* last = server_.inference.response.add_choices();
    last->add_token_ids(6);
    last->set_finish_reason(v1::FINISH_REASON_LENGTH);
  }

  ClientResult Bench(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"bench", "--server", server_.address()});
    return RunWith(arguments);
  }

  FakeServer server_;
};

TEST_F(BenchTest, PrintsOneJsonObject) {
  const ClientResult result = Bench({"--json",
                                     "--concurrency",
                                     "2",
                                     "--prompt-tokens",
                                     "7",
                                     "--output-tokens",
                                     "4",
                                     "--count",
                                     "5",
                                     "--warm-up",
                                     "3",
                                     "--check",
                                     "2",
                                     "--seed",
                                     "18446744073709551615",
                                     "--threads",
                                     "2",
                                     "--temperature",
                                     "0.7",
                                     "--timeout",
                                     "20",
                                     "--model",
                                     "small"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(server_.inference.calls, 2 + 3 + 5);
  const nlohmann::json report = nlohmann::json::parse(result.out);
  const nlohmann::json settings = {{"server", server_.address()},
                                   {"timeout_seconds", 20.0},
                                   {"model", "small"},
                                   {"concurrency", 2},
                                   {"prompt_tokens", 7},
                                   {"output_tokens", 4},
                                   {"count", 5},
                                   {"warm_up", 3},
                                   {"seed", 18446744073709551615u},
                                   {"temperature", 0.7},
                                   {"check", 2},
                                   {"threads", 2}};
  EXPECT_EQ(report["settings"], settings);
  EXPECT_EQ(report["server"]["version"], "1.2.3");
  EXPECT_EQ(report["server"]["model"], "small");
  EXPECT_EQ(report["requests"]["completed"], 5);
  EXPECT_EQ(report["input_tokens"], 35);
  EXPECT_EQ(report["output_tokens"], 20);
  EXPECT_EQ(report["tokens_per_message"], 20.0 / 15);
  EXPECT_EQ(report["time_to_first_token_ms"]["count"], 5);
  EXPECT_EQ(report["message_gap_ms"]["count"], 10);
  EXPECT_EQ(report["inter_token_ms"]["count"], 15);
  EXPECT_EQ(report["check"]["compared"], 2);
  EXPECT_EQ(report["check"]["different_from_solo"], 0);
  EXPECT_EQ(server_.inference.generate_request.model(), "small");
}

TEST_F(BenchTest, PrintsATableForPeople) {
  const ClientResult result =
      Bench({"--output-tokens", "4", "--prompt-tokens", "7", "--count", "3", "--check", "1"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "") << "no progress where there is no terminal";
  for (const char* part :
       {"model        small", "3 requests of 7 + 4 tokens, 1 at a time", "3 completed", "0 failed",
        "21 tokens (", "12 tokens (", "1.33 a message", "time to first token ", "inter-token ",
        "message gap ", "end to end ", "0 of 1 requests gave other tokens"}) {
    EXPECT_THAT(result.out, HasSubstr(part));
  }
}

TEST_F(BenchTest, AFailureIsCountedAndTurnsTheExitCode) {
  server_.inference.status = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full \xff");
  const ClientResult json = Bench({"--json", "--output-tokens", "4", "--count", "3"});
  EXPECT_EQ(json.exit_code, 18);
  const nlohmann::json report = nlohmann::json::parse(json.out);
  EXPECT_EQ(report["requests"]["completed"], 0);
  EXPECT_EQ(report["requests"]["failed"], 3);
  EXPECT_EQ(report["requests"]["errors"][0]["status"], "RESOURCE_EXHAUSTED");
  EXPECT_EQ(report["requests"]["errors"][0]["count"], 3);
  EXPECT_TRUE(report["end_to_end_ms"]["p99"].is_null());
  EXPECT_THAT(Bench({"--output-tokens", "4", "--count", "3"}).out,
              HasSubstr("RESOURCE_EXHAUSTED 3 times: full"));
}

TEST_F(BenchTest, AFailureBeforeTheMeasuredRunEndsIt) {
  server_.inference.status = grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  const ClientResult check = Bench({"--output-tokens", "4", "--check", "1"});
  EXPECT_EQ(check.exit_code, 24);
  EXPECT_EQ(check.out, "");
  EXPECT_EQ(check.err, "ferrite: UNAVAILABLE: check: draining\n");
  EXPECT_EQ(Bench({"--output-tokens", "4", "--warm-up", "1"}).err,
            "ferrite: UNAVAILABLE: warm-up: draining\n");
}

TEST_F(BenchTest, WrongArgumentsAreNamedWithTheirBound) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--concurrency", "0"}, "--concurrency: '0' must be an integer from 1 to 65536"},
      {{"--prompt-tokens", "-3"}, "--prompt-tokens: '-3' must be an integer from 1 to 16777216"},
      {{"--output-tokens", "1e3"}, "--output-tokens: '1e3' must be an integer from 1 to 16777216"},
      {{"--count", "100000001"}, "--count: '100000001' must be an integer from 1 to 100000000"},
      {{"--warm-up", "-1"}, "--warm-up: '-1' must be an integer from 0 to 100000000"},
      {{"--check", "x"}, "--check: 'x' must be an integer from 0 to 100000000"},
      {{"--seed", "18446744073709551616"},
       "--seed: '18446744073709551616' must be an integer from 0 to 18446744073709551615"},
      {{"--temperature", "nan"}, "--temperature: 'nan' must be a number from 0 to 100"},
      {{"--threads", "257"}, "--threads: '257' must be an integer from 1 to 256"},
      {{"--check", "4", "--count", "3"}, "--check is 4; it must be at most --count, which is 3"},
      {{"--prompt-tokens", "190", "--output-tokens", "11"},
       "--prompt-tokens 190 and --output-tokens 11 are 201 tokens together; they must be at most "
       "200, the context of small"},
  };
  for (const auto& [arguments, message] : cases) {
    const ClientResult result = Bench(arguments);
    EXPECT_EQ(result.exit_code, 2) << message;
    EXPECT_THAT(result.err, HasSubstr(message));
  }
  EXPECT_EQ(server_.inference.calls, 0);
}

TEST_F(BenchTest, HelpSaysWhatIsCountedAndTheDefaults) {
  const ClientResult result = RunWith({"bench", "--help"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("--output-tokens INT"), HasSubstr("128"), HasSubstr("k times g/k")));
}

TEST(BenchReportTest, TheProgressLineFitsAndFills) {
  EXPECT_EQ(ProgressLine("bench", {32, 1280, 4.0}, 64),
            "bench [============>           ] 32/64  4.0 s  320 tokens/s");
  EXPECT_EQ(ProgressLine("bench", {64, 0, 1.0}, 64),
            "bench [========================] 64/64  1.0 s  0 tokens/s");
  EXPECT_THAT(ProgressLine("warm-up", {0, 0, 0}, 1).size(), AllOf(Ge(30u), Lt(80u)));
}

TEST(BenchReportTest, RatesAndTimesAreThoseOfTheSamples) {
  BenchReport report;
  report.load.completed = 4;
  report.load.seconds = 2;
  report.load.input_tokens = 40;
  report.load.output_tokens = 12;
  report.load.token_messages = 8;
  report.load.end_to_end = {0.004, 0.001, 0.003, 0.002};
  report.load.user_seconds = 0.5;
  report.load.system_seconds = 0.25;
  const nlohmann::ordered_json json = ToJson(report);
  EXPECT_EQ(json["requests_per_second"], 2.0);
  EXPECT_EQ(json["input_tokens_per_second"], 20.0);
  EXPECT_EQ(json["output_tokens_per_second"], 6.0);
  EXPECT_EQ(json["tokens_per_message"], 1.5);
  EXPECT_DOUBLE_EQ(json["end_to_end_ms"]["p50"].get<double>(), 2);
  EXPECT_DOUBLE_EQ(json["end_to_end_ms"]["p90"].get<double>(), 4);
  EXPECT_DOUBLE_EQ(json["end_to_end_ms"]["mean"].get<double>(), 2.5);
  EXPECT_EQ(json["client"]["cores"], 0.375);
}

}  // namespace
}  // namespace ferrite

#include "client/bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <iterator>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/bench_report.h"
#include "tests/client/fake_server.h"
#include "tests/client/small_model.h"

namespace ferrite {
namespace {

using ::testing::AllOf;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Lt;

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
  EXPECT_EQ(server_.inference.calls, 3 + 5 + 2);
  const nlohmann::json report = nlohmann::json::parse(result.out);
  const nlohmann::json settings = {{"server", server_.address()},
                                   {"timeout_seconds", 20.0},
                                   {"model", "small"},
                                   {"concurrency", 2},
                                   {"rate", nullptr},
                                   {"prompt_tokens", 7},
                                   {"output_tokens", 4},
                                   {"dataset", nullptr},
                                   {"shared_prefix_tokens", 0},
                                   {"prefixes", 1},
                                   {"turns", 1},
                                   {"duration_seconds", nullptr},
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
        "21 tokens (", "12 tokens (", "0 of them cached", "1.33 a message", "time to first token ",
        "inter-token ", "message gap ", "end to end ", "tokens/s a request ",
        "0 of 1 requests gave other tokens"}) {
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
  const ClientResult result = Bench({"--output-tokens", "4", "--warm-up", "1"});
  EXPECT_EQ(result.exit_code, 24);
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(result.err, "ferrite: UNAVAILABLE: warm-up: draining\n");
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
      {{"--prompt-tokens", "5..4"},
       "--prompt-tokens: '5..4' must be an integer from 1 to 16777216, "
       "or two as in 64..512"},
      {{"--rate", "0"}, "--rate: '0' must be a number from 0.001 to 1e+06"},
      {{"--duration", "0"}, "--duration: '0' must be a number of seconds above 0"},
      {{"--turns", "0"}, "--turns: '0' must be an integer from 1 to 10000"},
      {{"--prefixes", "0"}, "--prefixes: '0' must be an integer from 1 to 1048576"},
      {{"--goodput", "ttft=1s,x"}, "--goodput: 'x' must be ttft, itl or e2e"},
      {{"--sweep-concurrency", "1,0"}, "--sweep-concurrency: '0' must be an integer from 1 to"},
      {{"--sweep-rate", "1", "--rate", "1"},
       "--rate, --sweep-concurrency and --sweep-rate exclude"},
      {{"--plot", "a.svg"}, "--plot a.svg needs --sweep-concurrency or --sweep-rate"},
      {{"--dataset", "/nowhere/a.json"}, "/nowhere/a.json cannot be read: No such file"},
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

// Answers with as many tokens as asked for, after `pause`; alone, without the prefix cache, with
// those that `alone` begins with.
std::function<std::vector<v1::GenerateStreamResponse>(const v1::GenerateRequest&)> Answers(
    int32_t first, int32_t alone, std::chrono::milliseconds pause = {}) {
  return [=](const v1::GenerateRequest& request) {
    std::this_thread::sleep_for(pause);
    std::vector<v1::GenerateStreamResponse> messages(2);
    const bool cached = !request.has_cache_prompt() || request.cache_prompt();
    v1::Choice* choice = messages[0].mutable_delta()->add_choices();
    choice->add_token_ids(cached ? first : alone);
    for (int i = 1; i < request.stopping().max_new_tokens(); ++i) choice->add_token_ids(i);
    messages[1].mutable_finished()->add_choices()->set_finish_reason(v1::FINISH_REASON_LENGTH);
    messages[1].mutable_finished()->mutable_usage()->set_cached_tokens(2);
    return messages;
  };
}

TEST_F(BenchTest, RunsDoNotFindEachOthersPromptsCached) {
  std::mutex mutex;
  std::set<std::string> salts;
  int alone = 0;
  server_.inference.on_stream = [&](const v1::GenerateRequest& request) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (request.has_cache_salt()) {
      salts.insert(request.cache_salt());
    } else {
      EXPECT_FALSE(request.cache_prompt());
      ++alone;
    }
    return Answers(3, 3)(request);
  };
  for (size_t run = 1; run <= 2; ++run) {
    EXPECT_EQ(Bench({"--output-tokens", "4", "--count", "9", "--check", "2"}).exit_code, 0);
    EXPECT_EQ(salts.size(), run);
  }
  EXPECT_EQ(alone, 4);
}

TEST_F(BenchTest, AWrongAnswerTurnsTheExitCode) {
  server_.inference.on_stream = Answers(3, 4);
  const std::vector<std::string> arguments = {"--output-tokens", "4", "--count", "9",
                                              "--check",         "2"};
  const ClientResult table = Bench(arguments);
  EXPECT_EQ(table.exit_code, 25);
  EXPECT_THAT(table.out, HasSubstr("2 of 2 requests gave other tokens than alone"));
  EXPECT_THAT(table.out, HasSubstr("has another token than alone in place 0 of its output"));
  const ClientResult ignored = Bench({"--output-tokens", "4", "--count", "9", "--check", "0"});
  EXPECT_EQ(ignored.exit_code, 0);
  server_.inference.on_stream = Answers(3, 3);
  const ClientResult good = Bench(arguments);
  EXPECT_EQ(good.exit_code, 0);
  EXPECT_THAT(good.out, HasSubstr("0 of 2 requests gave other tokens than alone"));
}

TEST_F(BenchTest, OpenLoopReportsItsRateAndGoodput) {
  server_.inference.on_stream = Answers(3, 3, std::chrono::milliseconds(30));
  const ClientResult result =
      Bench({"--json", "--rate", "500", "--count", "20", "--prompt-tokens", "5..9",
             "--output-tokens", "1..4", "--goodput", "ttft=1ms", "--threads", "2"});
  EXPECT_EQ(result.exit_code, 0) << result.err << result.out;
  const nlohmann::json report = nlohmann::json::parse(result.out);
  EXPECT_EQ(report["settings"]["rate"], 500.0);
  EXPECT_TRUE(report["settings"]["concurrency"].is_null());
  EXPECT_EQ(report["settings"]["prompt_tokens"], "5..9");
  EXPECT_EQ(report["requests"]["completed"], 20);
  EXPECT_EQ(report["send_lag_ms"]["count"], 20);
  EXPECT_EQ(report["cached_tokens"], 40);
  EXPECT_EQ(report["goodput"]["requests"], 0) << "each takes 30 ms";
}

TEST_F(BenchTest, ADurationEndsTheLoad) {
  server_.inference.on_stream = Answers(3, 3, std::chrono::milliseconds(5));
  const ClientResult result = Bench({"--json", "--duration", "0.2", "--output-tokens", "2"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const nlohmann::json report = nlohmann::json::parse(result.out);
  EXPECT_GE(report["duration_seconds"], 0.2);
  EXPECT_GT(report["requests"]["completed"], 1);
  EXPECT_TRUE(report["settings"]["count"].is_null()) << "16 is the default of loads without one";
  EXPECT_EQ(report["check"]["compared"], std::min(4, report["requests"]["completed"].get<int>()));
}

TEST_F(BenchTest, ASweepHasAPointForEachLoadAndAPicture) {
  server_.inference.on_stream = Answers(3, 3, std::chrono::milliseconds(1));
  const std::string path = testing::TempDir() + "bench_test_sweep.svg";
  const std::vector<std::string> arguments = {
      "--output-tokens", "5",  "--sweep-concurrency", "1,3",    "--count", "6",
      "--plot",          path, "--goodput",           "e2e=10s"};
  std::vector<std::string> json = arguments;
  json.push_back("--json");
  const ClientResult result = Bench(json);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const nlohmann::json sweep = nlohmann::json::parse(result.out)["sweep"];
  ASSERT_EQ(sweep.size(), 2u);
  EXPECT_EQ(sweep[0]["settings"]["concurrency"], 1);
  EXPECT_EQ(sweep[1]["settings"]["concurrency"], 3);
  EXPECT_EQ(sweep[1]["requests"]["completed"], 6);
  EXPECT_EQ(sweep[1]["goodput"]["requests"], 6);
  EXPECT_EQ(sweep[1]["check"]["compared"], 4);
  std::ifstream file(path);
  const std::string svg((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  EXPECT_THAT(svg, AllOf(HasSubstr("output tokens/s"), HasSubstr("time to first token, ms"),
                         HasSubstr(">3</text>")));
  const ClientResult table = Bench(arguments);
  EXPECT_EQ(table.exit_code, 0) << table.err;
  EXPECT_THAT(table.out, AllOf(HasSubstr("TTFT p99"), HasSubstr("0/4\n")));
  EXPECT_EQ(Bench({"--output-tokens", "5", "--sweep-rate", "900", "--count", "2", "--plot",
                   "/nowhere/a.svg"})
                .err,
            "ferrite: --plot /nowhere/a.svg cannot be written\n");
}

TEST_F(BenchTest, TheServerCountsTheTokensOfADataset) {
  server_.inference.on_stream = Answers(3, 3);
  for (int id = 0; id < 6; ++id) server_.inference.tokens.add_token_ids(id);
  const std::string path = testing::TempDir() + "bench_test_dataset.json";
  std::ofstream(path) << R"([{"conversations": [{"value": "a b"}, {"value": "c"}]}])";
  const ClientResult result = Bench({"--json", "--dataset", path, "--count", "3", "--turns", "2"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const nlohmann::json report = nlohmann::json::parse(result.out);
  EXPECT_EQ(report["settings"]["dataset"], path);
  EXPECT_EQ(report["requests"]["started"], 3);
  EXPECT_EQ(report["requests"]["completed"], 6);
  EXPECT_EQ(report["output_tokens"], 36);
  EXPECT_EQ(report["input_tokens"], 3 * (6 + 18)) << "the second: 6, 6 of the answer and 6 more";
}

TEST_F(BenchTest, HelpSaysWhatIsCountedAndTheDefaults) {
  const ClientResult result = RunWith({"bench", "--help"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out, AllOf(HasSubstr("--output-tokens INT"), HasSubstr("128"),
                                HasSubstr("k times g/k"), HasSubstr("What is not")));
}

TEST(BenchReportTest, TheProgressLineFitsAndFills) {
  EXPECT_EQ(ProgressLine("bench", {32, 1280, 4.0}, 64),
            "bench [============>           ] 32/64  4.0 s  320 tokens/s");
  EXPECT_EQ(ProgressLine("bench", {64, 0, 1.0}, 64),
            "bench [========================] 64/64  1.0 s  0 tokens/s");
  EXPECT_EQ(ProgressLine("bench", {31, 1280, 4.0}, 100, 8),
            "bench [============>           ] 4/8 s  31 done  320 tokens/s");
  EXPECT_THAT(ProgressLine("warm-up", {0, 0, 0}, 1).size(), AllOf(Ge(30u), Lt(80u)));
}

TEST(BenchReportTest, RatesAndTimesAreThoseOfTheSamples) {
  BenchReport report;
  report.load.completed = 4;
  report.load.seconds = 2;
  report.load.input_tokens = 40;
  report.load.output_tokens = 12;
  report.load.token_messages = 8;
  // To the first token, between tokens, end to end; tokens.
  report.load.times = {{0.001, 0.001, 0.004, 4},
                       {0.0005, 0, 0.001, 4},
                       {0.001, 0.002, 0.003, 3},
                       {0.002, 0, 0.002, 1}};
  report.load.failures[grpc::StatusCode::UNAVAILABLE] = {1, "away", {0.5}};
  report.options.goodput = Objective{0.001, 0.001, std::nullopt};
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
  EXPECT_DOUBLE_EQ(json["request_tokens_per_second"]["min"].get<double>(), 500);
  EXPECT_DOUBLE_EQ(json["request_tokens_per_second"]["max"].get<double>(), 4000);
  EXPECT_EQ(json["goodput"]["requests"], 2) << "one was late to begin, one too slow";
  EXPECT_EQ(json["goodput"]["per_second"], 1.0);
  EXPECT_DOUBLE_EQ(json["goodput"]["fraction"].get<double>(), 0.4);
  EXPECT_EQ(json["goodput"]["objective"]["ttft_ms"], 1.0);
  EXPECT_TRUE(json["goodput"]["objective"]["e2e_ms"].is_null());
  EXPECT_EQ(json["requests"]["errors"][0]["end_to_end_ms"]["p99"], 500.0);
}

}  // namespace
}  // namespace ferrite

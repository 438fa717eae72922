// `ferrite bench` against a real server with the embedded model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "tests/client/client_process.h"
#include "tests/integration/harness.h"

namespace ferrite {
namespace {

using nlohmann::json;
using test::Harness;

struct BenchRun {
  int exit_code;
  json report;
};

BenchRun Bench(Harness& harness, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"bench", "--json", "--server", harness.address()});
  ClientProcess client(FERRITE_CLIENT_BINARY, arguments);
  const std::string out = client.ReadAll();
  return {client.Wait(), json::parse(out, nullptr, /*allow_exceptions=*/false)};
}

TEST(BenchTest, CountsEveryRequestAndToken) {
  const auto harness = Harness::Stories();
  ASSERT_NE(harness, nullptr);
  const BenchRun run =
      Bench(*harness, {"--concurrency", "8", "--threads", "2", "--prompt-tokens", "17",
                       "--output-tokens", "23", "--count", "30", "--warm-up", "5", "--check", "4"});
  EXPECT_EQ(run.exit_code, 0);
  ASSERT_TRUE(run.report.is_object());
  const json& report = run.report;
  EXPECT_EQ(report["settings"]["concurrency"], 8);
  EXPECT_EQ(report["settings"]["seed"], 0);
  EXPECT_EQ(report["server"]["model"], "stories260k");
  EXPECT_EQ(report["server"]["workers"][0]["device"], "cpu");
  EXPECT_EQ(report["interrupted"], false);
  EXPECT_EQ(report["requests"]["completed"], 30);
  EXPECT_EQ(report["requests"]["failed"], 0);
  EXPECT_EQ(report["input_tokens"], 30 * 17);
  EXPECT_EQ(report["output_tokens"], 30 * 23);
  EXPECT_EQ(report["check"]["compared"], 4);
  EXPECT_EQ(report["check"]["different_from_solo"], 0) << "fp32 on a CPU is the same in any batch";
  EXPECT_EQ(report["time_to_first_token_ms"]["count"], 30);
  EXPECT_EQ(report["end_to_end_ms"]["count"], 30);
  for (const char* times :
       {"time_to_first_token_ms", "inter_token_ms", "message_gap_ms", "end_to_end_ms"}) {
    const json& of = report[times];
    double before = 0;
    for (const char* statistic : {"min", "p50", "p90", "p95", "p99", "max"}) {
      ASSERT_TRUE(of[statistic].is_number()) << times << " " << statistic;
      EXPECT_GE(of[statistic].get<double>(), before) << times << " " << statistic;
      before = of[statistic].get<double>();
    }
  }
  EXPECT_GT(report["output_tokens_per_second"], 0);
  EXPECT_GT(report["client"]["user_seconds"], 0);
  EXPECT_TRUE(harness->BecomesIdle());
}

TEST(BenchTest, OpenLoopConversationsShareAPrefixAndAnswerAsAlone) {
  const auto harness = Harness::Stories();
  ASSERT_NE(harness, nullptr);
  const BenchRun run =
      Bench(*harness, {"--rate", "50", "--count", "12", "--turns", "3", "--shared-prefix-tokens",
                       "64", "--prompt-tokens", "5..20", "--output-tokens", "4..16", "--warm-up",
                       "2", "--check", "6", "--goodput", "ttft=60s,itl=60s"});
  EXPECT_EQ(run.exit_code, 0) << run.report;
  ASSERT_TRUE(run.report.is_object());
  const json& report = run.report;
  EXPECT_EQ(report["requests"]["started"], 12);
  EXPECT_EQ(report["requests"]["completed"], 36);
  EXPECT_EQ(report["goodput"]["requests"], 36);
  EXPECT_EQ(report["check"]["compared"], 6);
  EXPECT_EQ(report["check"]["different_from_solo"], 0) << report["check"];
  // The warm-up's requests left the prefix in the cache: four blocks of 16 tokens, for each turn.
  EXPECT_GE(report["cached_tokens"], 36 * 64);
  EXPECT_LT(report["cached_tokens"], report["input_tokens"]);
  EXPECT_TRUE(harness->BecomesIdle());
}

TEST(BenchTest, AFullQueueFailsSomeRequestsAndTheRunGoesOn) {
  ServerConfig config = Harness::DefaultConfig();
  config.scheduler.max_running = 1;
  config.scheduler.max_waiting = 1;
  const auto harness = Harness::Stories(config);
  ASSERT_NE(harness, nullptr);
  const BenchRun run = Bench(*harness, {"--concurrency", "16", "--prompt-tokens", "8",
                                        "--output-tokens", "32", "--count", "200"});
  EXPECT_EQ(run.exit_code, 18);
  ASSERT_TRUE(run.report.is_object());
  const json& requests = run.report["requests"];
  EXPECT_GT(requests["completed"], 0);
  EXPECT_GT(requests["failed"], 0);
  EXPECT_EQ(requests["completed"].get<int>() + requests["failed"].get<int>(), 200);
  ASSERT_EQ(requests["errors"].size(), 1u) << requests;
  EXPECT_EQ(requests["errors"][0]["status"], "RESOURCE_EXHAUSTED");
  EXPECT_EQ(run.report["output_tokens"], requests["completed"].get<int>() * 32);
  EXPECT_TRUE(harness->BecomesIdle());
}

TEST(BenchTest, ControlCEndsItAndFreesTheServer) {
  const auto harness = Harness::Stories();
  ASSERT_NE(harness, nullptr);
  ClientProcess client(FERRITE_CLIENT_BINARY,
                       {"bench", "--json", "--server", harness->address(), "--concurrency", "4",
                        "--prompt-tokens", "8", "--output-tokens", "400", "--count", "1000000"});
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (harness->server().engine().load()[0].requests_running < 4 &&
         std::chrono::steady_clock::now() < limit) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  client.Interrupt();
  const json report = json::parse(client.ReadAll(), nullptr, /*allow_exceptions=*/false);
  EXPECT_EQ(client.Wait(), 11);
  ASSERT_TRUE(report.is_object());
  EXPECT_EQ(report["interrupted"], true);
  EXPECT_EQ(report["requests"]["failed"], 0);
  EXPECT_LE(report["requests"]["cut_short"], 4);
  EXPECT_EQ(report["requests"]["completed"], report["end_to_end_ms"]["count"]);
  EXPECT_TRUE(harness->BecomesIdle());
}

}  // namespace
}  // namespace ferrite

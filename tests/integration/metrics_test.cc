// What is counted and logged is what clients saw.
#include "server/metric_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <future>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "server/call_log.h"
#include "tests/integration/call_mix.h"
#include "tests/integration/open_stream.h"
#include "tests/integration/prometheus_text.h"

namespace ferrite {
namespace {

using test::Answer;
using test::FakeBackendOptions;
using test::Greedy;
using test::Harness;
using test::OpenStream;
using test::RunCalls;
using test::Seen;
using test::SlowDevice;
using test::TextMetrics;
using test::ToLength;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

ServerConfig WithMetrics() {
  ServerConfig config = Harness::DefaultConfig();
  config.metrics.listen = "127.0.0.1:0";
  return config;
}

// One scrape.
class Scrape {
 public:
  explicit Scrape(Harness& harness) {
    const auto text = test::HttpGet(harness.server().metrics_port(), "/metrics");
    EXPECT_TRUE(text.ok()) << text.status();
    auto metrics = test::ParseMetrics(text.value_or("\n"));
    EXPECT_TRUE(metrics.ok()) << metrics.status() << "\n" << text.value_or("");
    if (metrics.ok()) metrics_ = *std::move(metrics);
  }

  // The value of the series with these labels, besides model and worker; 0 if there is none.
  double operator()(const std::string& name, const std::map<std::string, std::string>& labels = {},
                    const std::string& suffix = "") const {
    const auto family = metrics_.find(name);
    if (family == metrics_.end() || !family->second.samples.contains(suffix)) return 0;
    double sum = 0;
    for (const auto& [text, value] : family->second.samples.at(suffix)) {
      const auto has = test::ParseLabels(text);
      const bool matches = std::all_of(labels.begin(), labels.end(), [&](const auto& label) {
        const auto found = has.find(label.first);
        return found != has.end() && found->second == label.second;
      });
      if (matches) sum += value;
    }
    return sum;
  }
  double Calls(const std::string& rpc, const std::string& code) const {
    return (*this)("ferrite_requests_total", {{"rpc", rpc}, {"code", code}});
  }
  double Finished(const std::string& reason) const {
    return (*this)("ferrite_requests_finished_total", {{"reason", reason}});
  }
  double Rejected(const std::string& reason) const {
    return (*this)("ferrite_admission_rejected_total", {{"reason", reason}});
  }
  double Count(const std::string& histogram) const { return (*this)(histogram, {}, "_count"); }
  double Sum(const std::string& histogram) const { return (*this)(histogram, {}, "_sum"); }
  const TextMetrics& metrics() const { return metrics_; }

 private:
  TextMetrics metrics_;
};

// The worker's own figures may be a step behind what clients saw.
bool Becomes(Harness& harness, const std::function<bool(const Scrape&)>& done) {
  const Clock::time_point limit = Clock::now() + std::chrono::seconds(30);
  while (Clock::now() < limit) {
    if (done(Scrape(harness))) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

TEST(MetricsTest, ReconcileWithWhatClientsSaw) {
  const auto harness = Harness::Stories(WithMetrics());
  ASSERT_NE(harness, nullptr);
  const Seen seen = RunCalls(*harness);
  const int requests = seen.samples + 2;  // and the inputs of Embed
  ASSERT_TRUE(Becomes(*harness, [&](const Scrape& scrape) {
    return scrape.Count("ferrite_request_duration_seconds") == requests &&
           scrape("ferrite_requests_running") == 0;
  }));
  const Scrape scrape(*harness);
  double calls = 0;
  for (const auto& [call, count] : seen.calls) {
    EXPECT_EQ(scrape.Calls(call.first, call.second), count) << call.first << " " << call.second;
    calls += count;
  }
  EXPECT_EQ(scrape("ferrite_requests_total"), calls) << "nothing else was counted";
  EXPECT_EQ(seen.calls.size(), 9u) << "of OK and else";

  EXPECT_EQ(scrape.Finished("stop"), seen.finished.at(v1::FINISH_REASON_STOP));
  EXPECT_EQ(scrape.Finished("length"), seen.finished.at(v1::FINISH_REASON_LENGTH));
  EXPECT_EQ(scrape.Finished("embedded"), 2);
  EXPECT_EQ(scrape("ferrite_requests_finished_total"), requests);
  EXPECT_EQ(scrape("ferrite_admission_rejected_total"), 0);

  EXPECT_EQ(scrape("ferrite_prompt_tokens_total"), seen.prompt_tokens);
  EXPECT_EQ(scrape.Sum("ferrite_request_prompt_tokens"), seen.prompt_tokens);
  EXPECT_EQ(scrape.Count("ferrite_request_prompt_tokens"), seen.prompts);
  EXPECT_EQ(scrape("ferrite_generation_tokens_total"), seen.generation_tokens);
  EXPECT_EQ(scrape.Sum("ferrite_request_generation_tokens"), seen.generation_tokens);
  EXPECT_EQ(scrape.Count("ferrite_request_generation_tokens"), seen.samples);

  EXPECT_EQ(scrape.Count("ferrite_request_queue_seconds"), requests);
  EXPECT_EQ(scrape.Count("ferrite_time_to_first_token_seconds"), seen.samples);
  EXPECT_EQ(scrape.Count("ferrite_inter_token_latency_seconds"),
            seen.generation_tokens - seen.samples);
  EXPECT_GT(scrape.Sum("ferrite_inter_token_latency_seconds"), 0);
  EXPECT_EQ(scrape.Count("ferrite_step_duration_seconds"), scrape("ferrite_steps_total"));
  EXPECT_EQ(scrape.Count("ferrite_step_tokens"), scrape("ferrite_steps_total"));
  EXPECT_GT(scrape("ferrite_step_duration_seconds", {{"phase", "decode"}}, "_count"), 0);
  EXPECT_GT(scrape("ferrite_step_duration_seconds", {{"phase", "prefill"}}, "_count"), 0);
  EXPECT_EQ(scrape("ferrite_steps_total", {{"mode", "graph"}}), 0) << "the CPU has no graphs";
}

TEST(MetricsTest, ExportsTheTableAndNothingElse) {
  const auto harness = Harness::Stories(WithMetrics());
  ASSERT_NE(harness, nullptr);
  const Scrape scrape(*harness);
  std::set<std::string> expected;
  for (const Metric& metric : MetricTable()) {
    if (std::string(metric.name) != "ferrite_gpu_memory_bytes") expected.insert(metric.name);
  }
  for (const auto& [name, family] : scrape.metrics()) {
    EXPECT_EQ(expected.erase(name), 1u) << name << " is not in the table";
    const Metric* const metric = FindMetric(name);
    if (metric == nullptr) continue;
    EXPECT_EQ(family.help, metric->help);
    for (const auto& [suffix, series] : family.samples) {
      for (const auto& [text, value] : series) {
        std::vector<std::string> names = absl::StrSplit(metric->labels, ", ", absl::SkipEmpty());
        if (suffix == "_bucket") names.push_back("le");
        std::sort(names.begin(), names.end());
        std::vector<std::string> found;
        for (const auto& [label, content] : test::ParseLabels(text)) found.push_back(label);
        EXPECT_EQ(found, names) << name << "{" << text << "}";
      }
    }
  }
  EXPECT_THAT(expected, IsEmpty()) << "not exported";
  std::set<std::string> codes;
  for (const auto& [text, value] : scrape.metrics().at("ferrite_requests_total").samples.at("")) {
    const auto labels = test::ParseLabels(text);
    if (labels.at("rpc") == "Embed") codes.insert(labels.at("code"));
  }
  EXPECT_THAT(codes, ElementsAre("DATA_LOSS", "INTERNAL", "OK", "UNAVAILABLE", "UNKNOWN"))
      << "what alerts look for is there from the start";
  EXPECT_EQ(scrape("ferrite_worker_healthy"), 1);
  EXPECT_EQ(scrape("ferrite_model_info", {{"device", "cpu"}, {"compute_type", "fp32"}}), 1);
  EXPECT_EQ(scrape("ferrite_kv_cache_blocks"),
            harness->server().engine().worker_info(0).num_blocks);
  EXPECT_FALSE(test::HttpGet(harness->server().metrics_port(), "/other").ok());
}

TEST(MetricsTest, CountCancelledAbortedAndLateCalls) {
  const auto harness = Harness::Fake(SlowDevice(), WithMetrics());
  ASSERT_NE(harness, nullptr);
  for (int i = 0; i < 3; ++i) {
    const Answer cancelled =
        harness->Stream(ToLength(4000), [](grpc::ClientContext& context, const Answer& answer) {
          if (answer.token_ids.size() > 2 || answer.messages > 2) context.TryCancel();
        });
    EXPECT_EQ(cancelled.status.error_code(), grpc::StatusCode::CANCELLED);
  }
  for (int i = 0; i < 2; ++i) {
    const Answer late = harness->Stream(ToLength(4000), {}, [](grpc::ClientContext& context) {
      context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
    });
    EXPECT_EQ(late.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  v1::GenerateRequest request = ToLength(4000);
  request.set_request_id("to-abort");
  bool sent = false;
  const Answer aborted = harness->Stream(request, [&](grpc::ClientContext&, const Answer& answer) {
    if (answer.messages < 2 || std::exchange(sent, true)) return;
    grpc::ClientContext context;
    v1::AbortRequest abort;
    abort.set_request_id("to-abort");
    v1::AbortResponse response;
    EXPECT_TRUE(harness->control().Abort(&context, abort, &response).ok());
  });
  EXPECT_EQ(aborted.reason, v1::FINISH_REASON_ABORTED);
  ASSERT_TRUE(harness->BecomesIdle());
  ASSERT_TRUE(Becomes(*harness, [](const Scrape& scrape) {
    return scrape("ferrite_requests_finished_total") == 6 &&
           scrape("ferrite_requests_total", {{"rpc", "GenerateStream"}}) == 6;
  }));
  const Scrape scrape(*harness);
  EXPECT_EQ(scrape.Calls("GenerateStream", "CANCELLED"), 3);
  EXPECT_EQ(scrape.Calls("GenerateStream", "DEADLINE_EXCEEDED"), 2);
  EXPECT_EQ(scrape.Calls("GenerateStream", "OK"), 1);
  EXPECT_EQ(scrape.Calls("Abort", "OK"), 1);
  EXPECT_EQ(scrape.Finished("aborted"), 1);
  EXPECT_EQ(scrape.Finished("cancelled") + scrape.Finished("deadline"), 5);
  EXPECT_EQ(scrape("ferrite_kv_cache_usage_ratio"), 0);
}

TEST(MetricsTest, CountRefusedCallsByReason) {
  ServerConfig config = WithMetrics();
  config.scheduler.max_running = 1;
  config.scheduler.max_waiting = 1;
  config.limits.max_requests_per_client = 3;
  FakeBackendOptions fake = SlowDevice();
  const auto harness = Harness::Fake(fake, config);
  ASSERT_NE(harness, nullptr);
  harness->fake().HangAt(1);
  grpc::ClientContext contexts[2];
  std::unique_ptr<grpc::ClientReader<v1::GenerateStreamResponse>> readers[2];
  for (int i = 0; i < 2; ++i) {
    readers[i] = harness->inference().GenerateStream(&contexts[i], ToLength(20));
    ASSERT_TRUE(Becomes(*harness, [&](const Scrape& scrape) {
      return scrape("ferrite_requests_running") == 1 && scrape("ferrite_requests_waiting") == i;
    }));
  }
  // The queue holds one.
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(harness->Stream(ToLength(5)).status.error_code(),
              grpc::StatusCode::RESOURCE_EXHAUSTED);
  }
  EXPECT_EQ(Scrape(*harness).Rejected("queue_requests"), 4);
  harness->fake().ReleaseHang();
  for (auto& reader : readers) {
    v1::GenerateStreamResponse message;
    while (reader->Read(&message)) {
    }
    EXPECT_TRUE(reader->Finish().ok());
  }
  ASSERT_TRUE(harness->BecomesIdle());
  harness->fake().FailWaitAt(1);
  EXPECT_EQ(harness->Stream(ToLength(5)).status.error_code(), grpc::StatusCode::INTERNAL);
  ASSERT_TRUE(Becomes(*harness,
                      [](const Scrape& scrape) { return scrape("ferrite_worker_healthy") == 0; }));
  EXPECT_EQ(harness->Stream(ToLength(5)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  const Scrape scrape(*harness);
  EXPECT_EQ(scrape.Rejected("unhealthy"), 1);
  EXPECT_EQ(scrape("ferrite_admission_rejected_total"), 5);
  EXPECT_EQ(scrape.Calls("GenerateStream", "RESOURCE_EXHAUSTED"), 4);
  EXPECT_EQ(scrape.Calls("GenerateStream", "INTERNAL"), 1);
  EXPECT_EQ(scrape.Calls("GenerateStream", "UNAVAILABLE"), 1);
  EXPECT_EQ(scrape.Calls("GenerateStream", "OK"), 2);
  EXPECT_EQ(scrape.Finished("failed"), 1);
}

TEST(MetricsTest, CountWhatTheQueueHasNoTokensFor) {
  ServerConfig config = WithMetrics();
  config.scheduler.max_running = 1;
  config.scheduler.max_waiting_tokens = 20;
  const auto harness = Harness::Fake(SlowDevice(), config);
  ASSERT_NE(harness, nullptr);
  v1::GenerateRequest request = ToLength(4000);
  for (int i = 0; i < 15; ++i) request.mutable_token_ids()->add_ids(300 + i);
  OpenStream running(harness->NewChannel(), request);
  ASSERT_TRUE(running.Read());
  OpenStream waiting(harness->NewChannel(), request);
  ASSERT_TRUE(Becomes(*harness, [](const Scrape& scrape) {
    return scrape("ferrite_requests_running") == 1 && scrape("ferrite_requests_waiting") == 1;
  }));
  const Answer full = harness->Stream(request);
  EXPECT_EQ(full.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(full.status.error_message(), HasSubstr("scheduler.max_waiting_tokens is 20"));
  const Scrape scrape(*harness);
  EXPECT_EQ(scrape.Rejected("queue_tokens"), 1);
  EXPECT_EQ(scrape("ferrite_admission_rejected_total"), 1);
}

TEST(MetricsTest, CountWhatWouldBeLate) {
  ServerConfig config = WithMetrics();
  config.scheduler.refuse_late = true;
  const auto harness = Harness::Fake(SlowDevice(), config);
  ASSERT_NE(harness, nullptr);
  OpenStream running(harness->NewChannel(), ToLength(4000));
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(running.Read());
  // 4000 steps of at least 5 ms each.
  OpenStream late(harness->NewChannel(), ToLength(4000), {}, std::chrono::seconds(10));
  EXPECT_EQ(late.Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const Scrape scrape(*harness);
  EXPECT_EQ(scrape.Rejected("late"), 1);
  EXPECT_EQ(scrape("ferrite_admission_rejected_total"), 1);
}

TEST(MetricsTest, CountWhatComesWhileTheServerDrains) {
  const auto harness = Harness::Fake(SlowDevice(), WithMetrics());
  ASSERT_NE(harness, nullptr);
  std::atomic<bool> hurry = false;
  auto running = std::make_unique<OpenStream>(harness->NewChannel(), ToLength(4000));
  ASSERT_TRUE(running->Read());
  auto drain = std::async(std::launch::async,
                          [&] { return harness->server().Drain([&] { return hurry.load(); }); });
  int refused = 0;
  ASSERT_TRUE(Becomes(*harness, [&](const Scrape&) {
    refused += harness->Stream(ToLength(1)).status.error_code() == grpc::StatusCode::UNAVAILABLE;
    return refused == 3;
  }));
  const Scrape scrape(*harness);
  EXPECT_EQ(scrape.Rejected("draining"), 3);
  EXPECT_EQ(scrape("ferrite_admission_rejected_total"), 3);
  hurry = true;
  EXPECT_EQ(drain.get(), 1);
}

TEST(MetricsTest, CountAClientThatAsksTooMuch) {
  ServerConfig config = WithMetrics();
  config.limits.max_requests_per_client = 1;
  const auto harness = Harness::Fake(SlowDevice(), config);
  ASSERT_NE(harness, nullptr);
  grpc::ClientContext context;
  const auto reader = harness->inference().GenerateStream(&context, ToLength(4000));
  v1::GenerateStreamResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(harness->Stream(ToLength(5)).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Scrape(*harness).Rejected("client_limit"), 1);
  context.TryCancel();
  while (reader->Read(&message)) {
  }
  (void)reader->Finish();
}

TEST(MetricsTest, AnAddressInUseEndsTheStart) {
  const auto harness = Harness::Fake({}, WithMetrics());
  ASSERT_NE(harness, nullptr);
  ServerConfig config = Harness::DefaultConfig();
  config.metrics.listen = absl::StrCat("127.0.0.1:", harness->server().metrics_port());
  const Logger logger(LogFormat::kText, LogLevel::kError);
  const auto second = Server::Create(config, &logger, Clock::now());
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(second.status().message(), HasSubstr("metrics.listen is '" + config.metrics.listen));
}

TEST(MetricsTest, AreOffUnlessAsked) {
  const auto harness = Harness::Fake({});
  ASSERT_NE(harness, nullptr);
  EXPECT_EQ(harness->server().metrics_port(), 0);
}

}  // namespace
}  // namespace ferrite

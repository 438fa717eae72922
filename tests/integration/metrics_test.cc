// What is counted and logged is what clients saw.
#include "server/metric_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "server/call_log.h"
#include "tests/integration/harness.h"
#include "tests/integration/prometheus_text.h"

namespace ferrite {
namespace {

using test::Answer;
using test::FakeBackendOptions;
using test::Greedy;
using test::Harness;
using test::TextMetrics;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr char kTraceparent[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

ServerConfig WithMetrics() {
  ServerConfig config = Harness::DefaultConfig();
  config.metrics.listen = "127.0.0.1:0";
  return config;
}

// A request that only its length ends.
v1::GenerateRequest ToLength(int32_t tokens) {
  v1::GenerateRequest request = Greedy("Hi there", tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
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

// What clients saw, added up.
struct Seen {
  std::map<std::pair<std::string, std::string>, int> calls;  // by RPC and code
  std::map<v1::FinishReason, int> finished;
  int64_t prompt_tokens = 0;
  int64_t generation_tokens = 0;
  int prompts = 0;
  int samples = 0;

  void Call(const std::string& rpc, const grpc::Status& status) {
    ++calls[{rpc, kCodeNames[static_cast<size_t>(status.error_code())]}];
  }
  void Usage(const v1::Usage& usage) {
    prompt_tokens += usage.prompt_tokens();
    generation_tokens += usage.completion_tokens();
    ++prompts;
  }
};

// Calls of every kind that end by themselves, one after another.
Seen RunCalls(Harness& harness) {
  Seen seen;
  for (int i = 1; i <= 5; ++i) {
    const Answer answer = harness.Stream(ToLength(7 * i));
    seen.Call("GenerateStream", answer.status);
    seen.Usage(answer.usage);
    ++seen.finished[answer.reason];
    ++seen.samples;
  }
  for (const int samples : {1, 3}) {
    v1::GenerateRequest request = Greedy("Once upon a time", 20);
    request.mutable_sampling()->set_temperature(1);
    request.mutable_sampling()->set_seed(samples);
    request.mutable_output()->set_n(samples);
    request.mutable_stopping()->add_stop_strings("a");
    v1::GenerateResponse response;
    seen.Call("Generate", harness.Generate(request, &response));
    seen.Usage(response.usage());
    for (const v1::Choice& choice : response.choices()) {
      ++seen.finished[choice.finish_reason()];
      ++seen.samples;
    }
  }
  {
    grpc::ClientContext context;
    v1::EmbedRequest request;
    request.add_inputs()->set_text("one");
    request.add_inputs()->set_text("and two");
    v1::EmbedResponse response;
    seen.Call("Embed", harness.inference().Embed(&context, request, &response));
    seen.prompt_tokens += response.usage().prompt_tokens();
    seen.prompts += response.embeddings_size();
  }
  v1::GenerateRequest wrong = Greedy("Hi", 5);
  wrong.mutable_sampling()->set_temperature(-1);
  v1::GenerateResponse ignored;
  seen.Call("Generate", harness.Generate(wrong, &ignored));
  wrong = Greedy("Hi", 5);
  wrong.set_model("another");
  seen.Call("GenerateStream", harness.Stream(wrong).status);
  for (int i = 0; i < 3; ++i) {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    v1::TokenizeResponse response;
    request.set_text("Hi");
    seen.Call("Tokenize", harness.inference().Tokenize(&context, request, &response));
  }
  {
    grpc::ClientContext context;
    v1::DetokenizeRequest request;
    request.add_token_ids(1 << 30);
    v1::DetokenizeResponse response;
    seen.Call("Detokenize", harness.inference().Detokenize(&context, request, &response));
  }
  {
    grpc::ClientContext context;
    v1::AbortRequest request;
    request.set_request_id("nobody");
    v1::AbortResponse response;
    seen.Call("Abort", harness.control().Abort(&context, request, &response));
  }
  {
    grpc::ClientContext context;
    v1::GetLoadResponse response;
    seen.Call("GetLoad", harness.control().GetLoad(&context, {}, &response));
  }
  return seen;
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

FakeBackendOptions Slow() {
  FakeBackendOptions fake;
  fake.step_time = std::chrono::milliseconds(5);
  fake.max_sequence_length = 4096;
  fake.num_blocks = 2048;
  return fake;
}

TEST(MetricsTest, CountCancelledAbortedAndLateCalls) {
  const auto harness = Harness::Fake(Slow(), WithMetrics());
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
  FakeBackendOptions fake = Slow();
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

TEST(MetricsTest, CountAClientThatAsksTooMuch) {
  ServerConfig config = WithMetrics();
  config.limits.max_requests_per_client = 1;
  const auto harness = Harness::Fake(Slow(), config);
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

// A server whose log the test reads, as JSON.
class AccessLogTest : public ::testing::Test {
 protected:
  void Start(ServerConfig config = Harness::DefaultConfig(), FakeBackendOptions fake = {},
             LogLevel level = LogLevel::kInfo) {
    harness_ = Harness::Fake(
        std::move(fake), config,
        std::make_unique<Logger>(LogFormat::kJson, level, [this](std::string_view line) {
          const std::lock_guard lock(mutex_);
          text_.append(line);
        }));
    ASSERT_NE(harness_, nullptr);
  }

  // The lines of this event, once there are `count`.
  std::vector<nlohmann::json> Lines(const std::string& event, size_t count) {
    const Clock::time_point limit = Clock::now() + std::chrono::seconds(20);
    std::vector<nlohmann::json> lines;
    while (true) {
      lines.clear();
      const std::vector<std::string> all = absl::StrSplit(text(), '\n', absl::SkipEmpty());
      for (const std::string& line : all) {
        if (nlohmann::json object = nlohmann::json::parse(line); object["event"] == event) {
          lines.push_back(std::move(object));
        }
      }
      if (lines.size() >= count || Clock::now() > limit) return lines;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

  std::string text() {
    const std::lock_guard lock(mutex_);
    return text_;
  }

  std::mutex mutex_;
  std::string text_;
  std::unique_ptr<Harness> harness_;  // last: it logs to the end
};

TEST_F(AccessLogTest, ALineSaysHowARequestWent) {
  Start();
  grpc::ClientContext context;
  context.AddMetadata("traceparent", kTraceparent);
  v1::GenerateRequest request = ToLength(9);
  request.set_request_id("my-request");
  const auto reader = harness_->inference().GenerateStream(&context, request);
  v1::GenerateStreamResponse message;
  v1::Usage usage;
  while (reader->Read(&message)) {
    if (message.has_finished()) usage = message.finished().usage();
  }
  ASSERT_TRUE(reader->Finish().ok());
  const auto echo = context.GetServerInitialMetadata().find("traceparent");
  ASSERT_NE(echo, context.GetServerInitialMetadata().end());
  EXPECT_EQ(std::string(echo->second.data(), echo->second.size()), kTraceparent);

  const std::vector<nlohmann::json> lines = Lines("request", 1);
  ASSERT_EQ(lines.size(), 1u);
  const nlohmann::json& line = lines[0];
  EXPECT_EQ(line["level"], "INFO");
  EXPECT_EQ(line["rpc"], "GenerateStream");
  EXPECT_EQ(line["status"], "OK");
  EXPECT_EQ(line["client"], "127.0.0.1");
  EXPECT_EQ(line["model"], "fake");
  EXPECT_EQ(line["request_id"], "my-request");
  EXPECT_EQ(line["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(line["finish_reason"], "length");
  EXPECT_EQ(line["prompt_tokens"], usage.prompt_tokens());
  EXPECT_EQ(line["completion_tokens"], 9);
  EXPECT_GE(line["queue_seconds"], 0.0);
  EXPECT_GE(line["time_to_first_token_seconds"], line["queue_seconds"]);
  EXPECT_GE(line["total_seconds"], line["time_to_first_token_seconds"]);
}

TEST_F(AccessLogTest, EveryKindOfCallIsALine) {
  Start(Harness::DefaultConfig(), {}, LogLevel::kDebug);
  const Seen seen = RunCalls(*harness_);
  std::map<std::pair<std::string, std::string>, int> logged;
  size_t calls = 0;
  for (const auto& [call, count] : seen.calls) calls += static_cast<size_t>(count);
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  for (const nlohmann::json& line : Lines("request", calls)) {
    ++logged[{line["rpc"], line["status"]}];
    if (line["status"] != "OK" || !line.contains("prompt_tokens")) continue;
    prompt_tokens += line["prompt_tokens"].get<int>();
    completion_tokens += line["completion_tokens"].get<int>();
  }
  EXPECT_EQ(logged, seen.calls);
  EXPECT_EQ(prompt_tokens, seen.prompt_tokens);
  EXPECT_EQ(completion_tokens, seen.generation_tokens);
}

TEST_F(AccessLogTest, ShortCallsAreNoLineAtLevelInfo) {
  Start();
  grpc::ClientContext context;
  v1::GetLoadResponse response;
  ASSERT_TRUE(harness_->control().GetLoad(&context, {}, &response).ok());
  ASSERT_TRUE(harness_->Stream(ToLength(3)).status.ok());
  EXPECT_EQ(Lines("request", 1).size(), 1u);
}

TEST_F(AccessLogTest, NothingOfAPromptOrAnAnswerIsLogged) {
  Start(Harness::DefaultConfig(), {}, LogLevel::kDebug);
  v1::GenerateRequest request = ToLength(20);
  request.set_text("Squeamish Ossifrage");
  const Answer answer = harness_->Stream(request);
  ASSERT_TRUE(answer.status.ok());
  request.mutable_stopping()->set_max_new_tokens(1 << 30);
  EXPECT_FALSE(harness_->Stream(request).status.ok());
  ASSERT_EQ(Lines("request", 2).size(), 2u);
  EXPECT_THAT(text(), Not(HasSubstr("Ossifrage")));
  ASSERT_FALSE(answer.text.empty());
  EXPECT_THAT(text(), Not(HasSubstr(answer.text)));
}

TEST_F(AccessLogTest, AWrongTraceparentIsNeitherEchoedNorLogged) {
  Start();
  for (const char* header : {"00-zz-00f067aa0ba902b7-01", "", "00"}) {
    grpc::ClientContext context;
    context.AddMetadata("traceparent", header);
    v1::GenerateResponse response;
    ASSERT_TRUE(harness_->inference().Generate(&context, ToLength(2), &response).ok());
    EXPECT_EQ(context.GetServerInitialMetadata().count("traceparent"), 0u);
  }
  for (const nlohmann::json& line : Lines("request", 3)) EXPECT_FALSE(line.contains("trace_id"));
}

TEST_F(AccessLogTest, CanBeSwitchedOff) {
  ServerConfig config = Harness::DefaultConfig();
  config.log.access = false;
  Start(config);
  ASSERT_TRUE(harness_->Stream(ToLength(3)).status.ok());
  ASSERT_TRUE(harness_->BecomesIdle());
  EXPECT_THAT(text(), Not(HasSubstr("\"request\"")));
}

TEST_F(AccessLogTest, ACancelledRequestHasWhatItGot) {
  Start(Harness::DefaultConfig(), Slow());
  (void)harness_->Stream(ToLength(4000), [](grpc::ClientContext& context, const Answer& answer) {
    if (answer.messages > 3) context.TryCancel();
  });
  const std::vector<nlohmann::json> lines = Lines("request", 1);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0]["status"], "CANCELLED");
  EXPECT_GT(lines[0]["completion_tokens"], 0);
  EXPECT_FALSE(lines[0].contains("finish_reason"));
}

TEST_F(AccessLogTest, FloodsOfRefusalsAreOneWarning) {
  ServerConfig config = Harness::DefaultConfig();
  config.limits.max_requests_per_client = 1;
  Start(config, Slow());
  grpc::ClientContext context;
  const auto reader = harness_->inference().GenerateStream(&context, ToLength(4000));
  v1::GenerateStreamResponse message;
  ASSERT_TRUE(reader->Read(&message));
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(harness_->Stream(ToLength(5)).status.error_code(),
              grpc::StatusCode::RESOURCE_EXHAUSTED);
  }
  context.TryCancel();
  while (reader->Read(&message)) {
  }
  (void)reader->Finish();
  ASSERT_EQ(Lines("request", 6).size(), 6u);
  const std::vector<nlohmann::json> warnings = Lines("request_refused", 1);
  ASSERT_GE(warnings.size(), 1u);
  EXPECT_LT(warnings.size(), 5u) << "more than one only where this took 10 s each";
  EXPECT_EQ(warnings[0]["level"], "WARNING");
  EXPECT_EQ(warnings[0]["reason"], "client_limit");
}

}  // namespace
}  // namespace ferrite

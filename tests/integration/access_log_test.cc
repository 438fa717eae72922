// What the log says of calls.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/call_log.h"
#include "tests/integration/call_mix.h"

namespace ferrite {
namespace {

using test::Answer;
using test::FakeBackendOptions;
using test::Harness;
using test::kTraceparent;
using test::RunCalls;
using test::Seen;
using test::SlowDevice;
using test::ToLength;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

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
  Start(Harness::DefaultConfig(), SlowDevice());
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
  Start(config, SlowDevice());
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

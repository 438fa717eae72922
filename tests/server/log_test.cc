#include "server/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

namespace ferrite {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

// 2026-01-02T03:04:05.678Z
const absl::Time kTime = absl::FromUnixMillis(1767323045678);

std::string Text(LogFields fields) {
  return FormatLogLine(LogFormat::kText, kTime, LogLevel::kInfo, "event", fields);
}

TEST(FormatLogLineTest, TextHoldsTimeLevelEventAndFields) {
  EXPECT_EQ(Text({{"key", "value"}, {"key2", "quoted value"}}),
            "2026-01-02T03:04:05.678Z INFO event key=value key2=\"quoted value\"\n");
  EXPECT_EQ(FormatLogLine(LogFormat::kText, kTime, LogLevel::kWarning, "bare", {}),
            "2026-01-02T03:04:05.678Z WARNING bare\n");
}

TEST(FormatLogLineTest, TextWritesEveryType) {
  const std::string owned = "owned";
  const absl::string_view abseil = "abseil";
  EXPECT_THAT(Text({{"int", -7},
                    {"size", size_t{18446744073709551615u}},
                    {"double", 0.1},
                    {"float", 0.5f},
                    {"yes", true},
                    {"no", false},
                    {"string", owned},
                    {"view", std::string_view("std")},
                    {"abseil", abseil}}),
              HasSubstr(" int=-7 size=18446744073709551615 double=0.1 float=0.5 yes=true no=false "
                        "string=owned view=std abseil=abseil\n"));
}

TEST(FormatLogLineTest, TextQuotesWhatWouldBeAmbiguous) {
  EXPECT_THAT(Text({{"k", ""}}), HasSubstr(" k=\"\"\n"));
  EXPECT_THAT(Text({{"k", "a=b"}}), HasSubstr(" k=\"a=b\"\n"));
  EXPECT_THAT(Text({{"k", "say \"hi\""}}), HasSubstr(R"( k="say \"hi\"")"));
  EXPECT_THAT(Text({{"k", "back\\slash"}}), HasSubstr(R"( k="back\\slash")"));
}

TEST(FormatLogLineTest, ALineFeedInAValueDoesNotStartALine) {
  const std::string line = Text({{"k", "first\nsecond\r\x1b[31m"}});
  EXPECT_EQ(line.find('\n'), line.size() - 1);
  EXPECT_THAT(line, HasSubstr(R"( k="first\nsecond\r\u001b[31m")"));
}

TEST(FormatLogLineTest, InvalidUtf8IsReplaced) {
  EXPECT_THAT(Text({{"k", "a\xff"}}), HasSubstr(" k=\"a\xEF\xBF\xBD\"\n"));
  const std::string line =
      FormatLogLine(LogFormat::kJson, kTime, LogLevel::kInfo, "event", {{"k", "a\xff"}});
  EXPECT_EQ(nlohmann::json::parse(line)["k"], "a\xEF\xBF\xBD");
}

TEST(FormatLogLineTest, JsonIsOneObjectALineThatKeepsTypes) {
  const std::string line =
      FormatLogLine(LogFormat::kJson, kTime, LogLevel::kError, "failed",
                    {{"text", "two\nlines"}, {"int", -7}, {"double", 0.25}, {"flag", true}});
  EXPECT_EQ(line, R"({"time":"2026-01-02T03:04:05.678Z","level":"ERROR","event":"failed",)"
                  R"("text":"two\nlines","int":-7,"double":0.25,"flag":true})"
                  "\n");
}

TEST(FormatLogLineTest, JsonWritesNullForWhatIsNoNumber) {
  const std::string line = FormatLogLine(LogFormat::kJson, kTime, LogLevel::kInfo, "event",
                                         {{"nan", std::numeric_limits<double>::quiet_NaN()},
                                          {"inf", std::numeric_limits<double>::infinity()}});
  const nlohmann::json object = nlohmann::json::parse(line);
  EXPECT_TRUE(object["nan"].is_null());
  EXPECT_TRUE(object["inf"].is_null());
}

TEST(LoggerTest, LeavesOutWhatIsBelowItsLevel) {
  std::vector<std::string> lines;
  const Logger logger(LogFormat::kText, LogLevel::kWarning,
                      [&](std::string_view line) { lines.emplace_back(line); });
  logger.Log(LogLevel::kDebug, "debug");
  logger.Log(LogLevel::kInfo, "info");
  logger.Log(LogLevel::kWarning, "warning");
  logger.Log(LogLevel::kError, "error");
  const std::string time = "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\\.[0-9]{3}Z";
  EXPECT_THAT(lines, ElementsAre(MatchesRegex(time + " WARNING warning\n"),
                                 MatchesRegex(time + " ERROR error\n")));
  EXPECT_FALSE(logger.Enabled(LogLevel::kInfo));
  EXPECT_TRUE(logger.Enabled(LogLevel::kWarning));
}

TEST(LoggerTest, ThreadsDoNotMixTheirLines) {
  constexpr int kThreads = 4;
  constexpr int kLines = 250;
  std::vector<std::string> lines;  // not synchronised: the logger must be
  const Logger logger(LogFormat::kJson, LogLevel::kInfo,
                      [&](std::string_view line) { lines.emplace_back(line); });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&logger, t] {
      for (int i = 0; i < kLines; ++i) {
        logger.Log(LogLevel::kInfo, "line", {{"thread", t}, {"i", i}});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_EQ(lines.size(), size_t{kThreads * kLines});
  std::vector<int> next(kThreads, 0);
  for (const std::string& line : lines) {
    const nlohmann::json object = nlohmann::json::parse(line);
    EXPECT_EQ(object["i"], next[object["thread"].get<int>()]++);
  }
}

TEST(LoggerTest, ASinkThatThrowsDoesNotReachTheCaller) {
  const Logger logger(LogFormat::kText, LogLevel::kInfo,
                      [](std::string_view) { throw std::runtime_error("disk full"); });
  testing::internal::CaptureStderr();
  logger.Log(LogLevel::kInfo, "event");
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("disk full"));
}

TEST(LoggerTest, WritesToStderrByDefault) {
  testing::internal::CaptureStderr();
  Logger(LogFormat::kText, LogLevel::kInfo).Log(LogLevel::kInfo, "hello", {{"n", 1}});
  EXPECT_THAT(testing::internal::GetCapturedStderr(), MatchesRegex("[^ ]+ INFO hello n=1\n"));
}

TEST(ParseLogWordsTest, KnowsTheConfigsWords) {
  EXPECT_EQ(ParseLogLevel("debug"), LogLevel::kDebug);
  EXPECT_EQ(ParseLogLevel("info"), LogLevel::kInfo);
  EXPECT_EQ(ParseLogLevel("warning"), LogLevel::kWarning);
  EXPECT_EQ(ParseLogLevel("error"), LogLevel::kError);
  EXPECT_EQ(ParseLogLevel("INFO"), std::nullopt);
  EXPECT_EQ(ParseLogFormat("text"), LogFormat::kText);
  EXPECT_EQ(ParseLogFormat("json"), LogFormat::kJson);
  EXPECT_EQ(ParseLogFormat(""), std::nullopt);
}

}  // namespace
}  // namespace ferrite

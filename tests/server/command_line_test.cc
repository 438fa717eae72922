#include "server/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "server/config.h"
#include "server/config_keys.h"

namespace ferrite {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

std::vector<const char*> Argv(const std::vector<std::string>& arguments) {
  std::vector<const char*> argv = {"ferrite-server"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  return argv;
}

absl::StatusOr<CommandLine> Parse(const std::vector<std::string>& arguments) {
  const std::vector<const char*> argv = Argv(arguments);
  return ParseCommandLine(static_cast<int>(argv.size()), argv.data());
}

struct Outcome {
  int exit_code = -1;  // -1: serve
  std::string out;
  std::string err;
};

Outcome RunConfigure(const std::vector<std::string>& arguments) {
  const std::vector<const char*> argv = Argv(arguments);
  std::ostringstream out;
  std::ostringstream err;
  const auto result = Configure(static_cast<int>(argv.size()), argv.data(), out, err);
  const int* code = std::get_if<int>(&result);
  return {code == nullptr ? -1 : *code, out.str(), err.str()};
}

TEST(CommandLineTest, NoArgumentsServeTheDefaults) {
  const auto parsed = Parse({});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->mode, CommandLine::Mode::kServe);
  EXPECT_EQ(parsed->config_path, "");
  EXPECT_TRUE(parsed->overrides.empty());
}

TEST(CommandLineTest, TakesEveryKeyAsAFlag) {
  for (const ConfigKey& key : ConfigKeys()) {
    if (std::string_view(key.name) == "workers") continue;
    for (const std::vector<std::string>& form :
         {std::vector<std::string>{"--" + std::string(key.name) + "=v"},
          std::vector<std::string>{"--" + std::string(key.name), "v"}}) {
      const auto parsed = Parse(form);
      ASSERT_TRUE(parsed.ok()) << parsed.status();
      ASSERT_EQ(parsed->overrides.size(), 1u) << key.name;
      EXPECT_EQ(parsed->overrides[0].key, key.name);
      EXPECT_EQ(parsed->overrides[0].value, "v");
    }
  }
}

TEST(CommandLineTest, NegativeAndOddValuesAreKeptAsWritten) {
  const auto parsed =
      Parse({"--defaults.temperature=-1", "--model.name=a=b c", "--server.listen", "[::]:1"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->overrides.size(), 3u);
  EXPECT_EQ(parsed->overrides[0].value, "[::]:1");
  EXPECT_EQ(parsed->overrides[1].value, "a=b c");
  EXPECT_EQ(parsed->overrides[2].value, "-1");
}

TEST(CommandLineTest, UnknownFlagsAreAllNamed) {
  const absl::Status status = Parse({"--server.lisen=x:1", "--check-confg", "stray"}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_EQ(std::string(status.message()),
            "command line: unknown flag '--server.lisen' (did you mean '--server.listen'?)\n"
            "command line: unknown flag '--check-confg' (did you mean '--check-config'?)\n"
            "command line: unexpected argument 'stray'");
}

TEST(CommandLineTest, RepeatedAndUnfinishedFlagsAreRefused) {
  EXPECT_THAT(std::string(Parse({"--log.level=info", "--log.level=debug"}).status().message()),
              HasSubstr("--log.level"));
  EXPECT_THAT(std::string(Parse({"--log.level"}).status().message()), HasSubstr("--log.level"));
  EXPECT_THAT(std::string(Parse({"--config"}).status().message()), HasSubstr("--config"));
  EXPECT_FALSE(Parse({"--config", ""}).ok());
  EXPECT_FALSE(Parse({"--check-config", "--print-config"}).ok());
}

TEST(ConfigureTest, AnswersWithoutServing) {
  EXPECT_EQ(RunConfigure({}).exit_code, -1);

  const Outcome version = RunConfigure({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.out, MatchesRegex("ferrite-server [0-9]+\\.[0-9]+\\.[0-9]+\n"));

  const Outcome help = RunConfigure({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  for (const ConfigKey& key : ConfigKeys()) {
    if (std::string_view(key.name) == "workers") continue;
    EXPECT_THAT(help.out, HasSubstr(std::string("--") + key.name));
  }

  const Outcome ok =
      RunConfigure({"--check-config", "--config", FERRITE_SOURCE_DIR "/config/server.yaml"});
  EXPECT_EQ(ok.exit_code, 0) << ok.err;
  EXPECT_EQ(ok.out, "ok\n");

  const Outcome wrong = RunConfigure({"--check-config", "--log.level=loud"});
  EXPECT_EQ(wrong.exit_code, 2);
  EXPECT_EQ(wrong.out, "");
  EXPECT_THAT(wrong.err, StartsWith("command line: log.level is 'loud'"));

  EXPECT_EQ(RunConfigure({"--nonsense"}).exit_code, 2);
}

TEST(ConfigureTest, PrintsTheEffectiveConfig) {
  const Outcome printed = RunConfigure({"--print-config", "--scheduler.max_running=7"});
  EXPECT_EQ(printed.exit_code, 0) << printed.err;
  ServerConfig expected;
  expected.scheduler.max_running = 7;
  EXPECT_EQ(printed.out, PrintConfig(expected));
}

}  // namespace
}  // namespace ferrite

#include "server/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "server/config_builder.h"
#include "server/config_keys.h"
#include "server/config_values.h"

namespace ferrite {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

absl::StatusOr<ServerConfig> Read(const std::string& text,
                                  const std::vector<CommandLine::Override>& flags = {}) {
  ConfigBuilder builder;
  builder.ReadText("server.yaml", text);
  for (const CommandLine::Override& flag : flags) builder.Override(flag);
  return std::move(builder).Finish();
}

// The problems that a config has, one a line; empty if it has none.
std::string Problems(const std::string& text,
                     const std::vector<CommandLine::Override>& flags = {}) {
  const absl::Status status = Read(text, flags).status();
  EXPECT_TRUE(status.ok() || absl::IsInvalidArgument(status)) << status;
  return std::string(status.message());
}

std::string ReadFileText(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

TEST(ConfigTest, AnEmptyFileGivesTheDefaults) {
  for (const char* text : {"", "# nothing\n", "---\n", "server:\nlog:\n  # level: debug\n"}) {
    const auto config = Read(text);
    ASSERT_TRUE(config.ok()) << text << config.status();
    EXPECT_EQ(*config, ServerConfig()) << text;
  }
}

TEST(ConfigTest, DefaultsAreTheDocumentedOnes) {
  const ServerConfig config;
  EXPECT_EQ(config.server.listen, "0.0.0.0:50051");
  EXPECT_EQ(config.server.max_message_bytes, 4194304);
  EXPECT_EQ(config.model.path, "models/stories260k");
  EXPECT_EQ(config.workers, std::vector<WorkerConfig>{WorkerConfig{{0}}});
  EXPECT_EQ(config.scheduler.max_running, 64);
  EXPECT_EQ(config.scheduler.max_step_tokens, 512);
  EXPECT_EQ(config.scheduler.mixed_step_tokens, 0);
  EXPECT_EQ(config.kv_cache.block_size, 16);
  EXPECT_EQ(config.defaults.temperature, 1.0);
  EXPECT_EQ(config.log.level, "info");
}

TEST(ConfigTest, ReadsEveryKey) {
  const auto config = Read(R"(
server: {listen: "[::1]:0", max_message_bytes: 1024, reflection: false,
         drain_grace_seconds: 0.5, drain_timeout_seconds: 0, stuck_step_seconds: 6,
         stuck_grace_seconds: 7, slow_reader_seconds: 8, unix_socket_mode: 0660, orca: true}
connections: {keepalive_seconds: 1, keepalive_timeout_seconds: 2, min_ping_seconds: 3,
              max_idle_seconds: 4, max_age_seconds: 5, max_age_grace_seconds: 6, max_streams: 7}
tls: {certificate: a.crt, key: a.key, client_ca: ca.crt, client_certificates: optional,
      reload_seconds: 0.5}
auth: {token_file: tokens, reload_seconds: 2}
limits: {max_prompt_tokens: 9, max_new_tokens: 17, max_requests_per_client: 3}
model: {path: /models/other, name: served}
backend: {type: cpu, compute_type: bf16, threads: 3, gpu_memory_fraction: 0.75,
          deterministic: true}
workers:
  - devices: [0]
  - {devices: [0]}
scheduler: {max_running: 8, max_step_tokens: 8, mixed_step_tokens: 9, max_context: 100,
            max_waiting: 5, max_waiting_tokens: 1000000000000, refuse_late: true, aging_seconds: 2}
kv_cache: {block_size: 32, blocks: 7, memory_mb: 9, prefix_caching: false}
defaults: {temperature: 0, top_k: 40, top_p: 0.9, min_p: 0.05, max_new_tokens: 17}
log: {format: json, level: debug}
)");
  ASSERT_TRUE(config.ok()) << config.status();
  ServerConfig expected;
  expected.server = {"[::1]:0", 1024, false, 0.5, 0, 6, 7, 8, "0660", true};
  expected.connections = {1, 2, 3, 4, 5, 6, 7};
  expected.tls = {"a.crt", "a.key", "ca.crt", "optional", 0.5};
  expected.auth = {"tokens", 2};
  expected.limits = {9, 17, 3};
  expected.model = {"/models/other", "served"};
  expected.backend = {"cpu", "bf16", 3, 0.75, true};
  expected.workers = {WorkerConfig{{0}}, WorkerConfig{{0}}};
  expected.scheduler = {8, 8, 9, 100, 5, 1'000'000'000'000, true, 2};
  expected.kv_cache = {32, 7, 9, false};
  expected.defaults = {0, 40, 0.9, 0.05, 17};
  expected.log = {"json", "debug"};
  EXPECT_EQ(*config, expected);
}

TEST(ConfigTest, HalfOfTlsIsAContradiction) {
  EXPECT_EQ(
      Problems("tls: {certificate: a}\n"),
      "server.yaml:1 and defaults: tls.certificate is 'a' and tls.key is empty; it is needed");
  EXPECT_THAT(Problems("tls: {key: a}\n"), HasSubstr("tls.certificate is empty; it is needed"));
  EXPECT_THAT(Problems("tls: {client_ca: a, client_certificates: required}\n"),
              HasSubstr("tls.client_ca is 'a' and tls.certificate is empty"));
  EXPECT_THAT(Problems("tls: {certificate: a, key: b, client_certificates: required}\n"),
              HasSubstr("tls.client_certificates is 'required' and tls.client_ca is empty"));
  EXPECT_THAT(Problems("tls: {certificate: a, key: b, client_ca: c}\n"),
              HasSubstr("tls.client_ca is 'c' and tls.client_certificates is none"));
  EXPECT_EQ(
      Problems("tls: {certificate: a, key: b, client_ca: c, client_certificates: optional}\n"), "");
}

TEST(ConfigTest, TheDefaultOutputMustBeWithinTheLimit) {
  EXPECT_EQ(Problems("limits: {max_new_tokens: 5}\ndefaults: {max_new_tokens: 6}\n"),
            "server.yaml:2 and server.yaml:1: defaults.max_new_tokens is 6, more than "
            "limits.max_new_tokens, which is 5");
  EXPECT_EQ(Problems("limits: {max_new_tokens: 6}\ndefaults: {max_new_tokens: 6}\n"), "");
  EXPECT_EQ(Problems("defaults: {max_new_tokens: 6}\n"), "");
}

TEST(ConfigTest, UnknownKeysAreNamedWithTheLikeliestOne) {
  EXPECT_EQ(Problems("server:\n  lisen: \"a:1\"\n"),
            "server.yaml:2: unknown key 'server.lisen' (did you mean 'server.listen'?)");
  EXPECT_EQ(Problems("\nsever:\n  listen: \"a:1\"\n"),
            "server.yaml:2: unknown key 'sever' (did you mean 'server'?)");
  EXPECT_EQ(Problems("max_running: 3\n"),
            "server.yaml:1: unknown key 'max_running' (did you mean 'scheduler.max_running'?)");
  EXPECT_EQ(Problems("server:\n  block_size: 3\n"),
            "server.yaml:2: unknown key 'server.block_size' (did you mean 'kv_cache.block_size'?)");
  EXPECT_EQ(Problems("log:\n  zebra: 3\n"), "server.yaml:2: unknown key 'log.zebra'");
}

TEST(ConfigTest, WrongTypesAreNamedWithWhatIsExpected) {
  EXPECT_EQ(Problems("scheduler:\n  max_running: many\n"),
            "server.yaml:2: scheduler.max_running is 'many'; it must be an integer from 1 to 4096");
  EXPECT_THAT(Problems("scheduler:\n  max_running: '8'\n"), HasSubstr("is the string \"8\""));
  EXPECT_THAT(Problems("scheduler:\n  max_running: 8.5\n"), HasSubstr("is '8.5'"));
  EXPECT_THAT(Problems("scheduler:\n  max_running:\n"), HasSubstr("is empty"));
  EXPECT_THAT(Problems("scheduler:\n  max_running: [8]\n"), HasSubstr("is a list"));
  EXPECT_THAT(Problems("scheduler:\n  max_running: {a: 8}\n"), HasSubstr("is a map"));
  EXPECT_THAT(Problems("server:\n  reflection: yes\n"), HasSubstr("is 'yes'; it must be true or"));
  EXPECT_THAT(Problems("model:\n  name:\n"), HasSubstr("model.name is empty; it must be a string"));
  EXPECT_EQ(Problems("server: 5\n"), "server.yaml:1: server is '5'; it must be a map of keys");
  EXPECT_EQ(Problems("- 5\n"), "server.yaml:1: the file is a list; it must be a map");
}

TEST(ConfigTest, AnyScalarIsAString) {
  const auto config = Read("model: {name: 7, path: !!str 8}\n");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.name, "7");
  EXPECT_EQ(config->model.path, "8");
}

// Each bound from both sides: the value on it is taken, the next one beyond is not.
struct BoundCase {
  const char* key;
  const char* allowed;
  const char* refused;
};

class ConfigBoundTest : public testing::TestWithParam<BoundCase> {};

TEST_P(ConfigBoundTest, IsKept) {
  const BoundCase& bound = GetParam();
  // max_step_tokens and max_running bound each other; keep the other one out of the way.
  const std::vector<CommandLine::Override> wide = {{"scheduler.max_step_tokens", "65536"}};
  const std::vector<CommandLine::Override> narrow = {{"scheduler.max_running", "1"}};
  const bool steps = std::string_view(bound.key) == "scheduler.max_step_tokens";
  std::vector<CommandLine::Override> flags = steps ? narrow : wide;
  flags.push_back({bound.key, bound.allowed});
  EXPECT_EQ(Problems("", flags), "");
  flags.back().value = bound.refused;
  EXPECT_THAT(Problems("", flags), AllOf(HasSubstr(std::string("command line: ") + bound.key),
                                         HasSubstr(std::string("'") + bound.refused + "'"),
                                         HasSubstr("it must be "), Not(HasSubstr("\n"))));
}

INSTANTIATE_TEST_SUITE_P(
    Keys, ConfigBoundTest,
    testing::Values(
        BoundCase{"server.max_message_bytes", "1024", "1023"},
        BoundCase{"server.max_message_bytes", "1073741824", "1073741825"},
        BoundCase{"server.drain_grace_seconds", "0", "-0.1"},
        BoundCase{"server.drain_timeout_seconds", "86400", "86400.5"},
        BoundCase{"server.drain_timeout_seconds", "1e3", "inf"},
        BoundCase{"server.drain_timeout_seconds", "1e3", "nan"},
        BoundCase{"server.stuck_step_seconds", "1", "0.9"},
        BoundCase{"server.slow_reader_seconds", "0", "-1"},
        BoundCase{"server.unix_socket_mode", "0777", "0778"},
        BoundCase{"server.unix_socket_mode", "660", "1660"},
        BoundCase{"server.unix_socket_mode", "0600", "60"}, BoundCase{"server.orca", "true", "yes"},
        BoundCase{"connections.keepalive_seconds", "0", "-0.1"},
        BoundCase{"connections.keepalive_timeout_seconds", "0.1", "0"},
        BoundCase{"connections.min_ping_seconds", "0", "-1"},
        BoundCase{"connections.max_idle_seconds", "86400", "86401"},
        BoundCase{"connections.max_age_seconds", "86400", "86401"},
        BoundCase{"connections.max_age_grace_seconds", "0", "-1"},
        BoundCase{"connections.max_streams", "0", "-1"},
        BoundCase{"limits.max_requests_per_client", "0", "-1"},
        BoundCase{"scheduler.refuse_late", "true", "1"},
        BoundCase{"scheduler.aging_seconds", "0.001", "0"},
        BoundCase{"server.listen", "localhost:65535", "localhost:65536"},
        BoundCase{"server.listen", "[::]:1", "::1"}, BoundCase{"server.listen", "a:0", ":0"},
        BoundCase{"server.listen", "a:0", "a"}, BoundCase{"server.listen", "a:0", "a:"},
        BoundCase{"server.listen", "a:0", "a:-1"}, BoundCase{"server.listen", "a:0", "a:1x"},
        BoundCase{"server.listen", "unix:/run/ferrite.sock", "unix:"},
        BoundCase{"model.path", "/m", ""}, BoundCase{"backend.type", "cuda", "gpu"},
        BoundCase{"backend.compute_type", "fp16", "int8"},
        BoundCase{"backend.gpu_memory_fraction", "1", "1.01"},
        BoundCase{"backend.gpu_memory_fraction", "0.01", "0"},
        BoundCase{"backend.deterministic", "true", "1"}, BoundCase{"backend.threads", "0", "-1"},
        BoundCase{"backend.threads", "1024", "1025"}, BoundCase{"scheduler.max_running", "1", "0"},
        BoundCase{"scheduler.max_running", "4096", "4097"},
        BoundCase{"scheduler.max_step_tokens", "1", "0"},
        BoundCase{"scheduler.max_step_tokens", "65536", "65537"},
        BoundCase{"scheduler.mixed_step_tokens", "0", "-1"},
        BoundCase{"scheduler.mixed_step_tokens", "65536", "65537"},
        BoundCase{"scheduler.max_context", "0", "-1"}, BoundCase{"scheduler.max_waiting", "1", "0"},
        BoundCase{"scheduler.max_waiting", "1000000", "1000001"},
        BoundCase{"scheduler.max_waiting_tokens", "1000000000000", "1000000000001"},
        BoundCase{"kv_cache.block_size", "1", "0"}, BoundCase{"kv_cache.block_size", "256", "257"},
        BoundCase{"kv_cache.blocks", "8388607", "8388608"},
        BoundCase{"kv_cache.memory_mb", "1", "0"},
        BoundCase{"kv_cache.prefix_caching", "true", "1"},
        BoundCase{"defaults.temperature", "0", "-1"},
        BoundCase{"defaults.temperature", "100", "100.1"},
        BoundCase{"defaults.top_k", "2147483647", "2147483648"},
        BoundCase{"defaults.top_p", "0.001", "0"}, BoundCase{"defaults.top_p", "1", "1.001"},
        BoundCase{"defaults.min_p", "0", "-0.001"}, BoundCase{"defaults.min_p", "1", "1.001"},
        BoundCase{"defaults.max_new_tokens", "0", "-1"}, BoundCase{"log.format", "json", "xml"},
        BoundCase{"log.level", "warning", "warn"}, BoundCase{"server.reflection", "false", "0"}));

TEST(ConfigTest, DuplicateKeysAreRefusedWithBothLines) {
  EXPECT_EQ(Problems("log:\n  level: info\n  format: text\n  level: debug\n"),
            "server.yaml:4: 'log.level' stands here again; it is first at server.yaml:2");
  EXPECT_EQ(Problems("log:\n  level: info\nlog:\n  level: debug\n"),
            "server.yaml:3: 'log' stands here again; it is first at server.yaml:1");
}

TEST(ConfigTest, EveryProblemIsReportedAtOnce) {
  EXPECT_EQ(Problems("server:\n  lisen: x\n  max_message_bytes: 3\nlog:\n  level: loud\n",
                     {{"kv_cache.blocks", "-1"}}),
            "server.yaml:2: unknown key 'server.lisen' (did you mean 'server.listen'?)\n"
            "server.yaml:3: server.max_message_bytes is '3'; it must be an integer from 1024 to "
            "1073741824\n"
            "server.yaml:5: log.level is 'loud'; it must be one of debug, info, warning, error\n"
            "command line: kv_cache.blocks is '-1'; it must be an integer from 0 to 8388607");
}

TEST(ConfigTest, ContradictionsNameBothKeysAndWhereTheyWereSet) {
  EXPECT_EQ(Problems("scheduler:\n  max_running: 600\n"),
            "defaults and server.yaml:2: scheduler.max_step_tokens is 512, less than "
            "scheduler.max_running, which is 600; a step must have room for a token of each "
            "running sequence");
  EXPECT_THAT(Problems("scheduler:\n  max_running: 600\n", {{"scheduler.max_step_tokens", "599"}}),
              HasSubstr("command line and server.yaml:2: "));
  EXPECT_EQ(Problems("scheduler: {max_running: 600, max_step_tokens: 600}\n"), "");
  EXPECT_EQ(Problems("scheduler: {max_context: 161}\nkv_cache: {blocks: 10}\n"),
            "server.yaml:1 and server.yaml:2: scheduler.max_context is 161, more than the 160 "
            "tokens that kv_cache.blocks 10 of kv_cache.block_size 16 hold");
  EXPECT_EQ(Problems("scheduler: {max_context: 160}\nkv_cache: {blocks: 10}\n"), "");
}

TEST(ConfigTest, AWrongValueMakesNoContradictionOnTop) {
  EXPECT_THAT(Problems("scheduler:\n  max_running: lots\n  max_step_tokens: 8\n"),
              AllOf(HasSubstr("'lots'"), Not(HasSubstr("less than"))));
}

TEST(ConfigTest, WorkersAreChecked) {
  EXPECT_EQ(Problems("workers:\n  - devices: [0]\n  - devices: [1]\n"),
            "server.yaml:1 and defaults: workers[1].devices is [1]; with backend.type cpu it must "
            "be [0]");
  EXPECT_THAT(Problems("workers:\n  - devices: [0, 0]\n"), HasSubstr("is [0, 0]; with backend"));
  EXPECT_THAT(Problems("workers: []\n"), HasSubstr("workers is a list of 0 (1 to 64 are allowed)"));
  EXPECT_THAT(Problems("workers: 2\n"), HasSubstr("workers is '2'; it must be a list like"));
  EXPECT_THAT(Problems("workers: [2]\n"), HasSubstr("workers[0] is '2'; it must be a map like"));
  EXPECT_THAT(Problems("workers: [{}]\n"), HasSubstr("workers[0] has no devices"));
  EXPECT_THAT(Problems("workers:\n  - devices: [0]\n    device: 1\n"),
              HasSubstr("server.yaml:3: unknown key 'workers[0].device'"));
  for (const char* devices : {"[]", "0", "[a]", "['0']", "[-1]", "[64]", "[[0]]"}) {
    EXPECT_THAT(Problems(std::string("workers: [{devices: ") + devices + "}]\n"),
                HasSubstr("server.yaml:1: workers[0].devices must be a list of device numbers"))
        << devices;
  }
}

TEST(ConfigTest, AGpuBelongsToOneWorker) {
  EXPECT_EQ(Problems("backend: {type: cuda}\n"
                     "workers: [{devices: [3]}, {devices: [0]}, {devices: [3]}]\n"),
            "server.yaml:2 and server.yaml:1: workers[2].devices[0] is 3, and so is "
            "workers[0].devices[0]; with backend.type cuda each worker has a GPU to itself");
  EXPECT_EQ(Problems("backend: {type: cuda}\nworkers: [{devices: [1]}, {devices: [0]}]\n"), "");
  EXPECT_EQ(Problems("workers: [{devices: [0]}, {devices: [0]}]\n"), "");
}

TEST(ConfigTest, FlagsOverrideTheFile) {
  const auto config = Read("server: {listen: 'a:1'}\nlog: {level: debug}\n",
                           {{"server.listen", "b:2"}, {"server.reflection", "false"}});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->server.listen, "b:2");
  EXPECT_FALSE(config->server.reflection);
  EXPECT_EQ(config->log.level, "debug");
}

TEST(ConfigTest, BrokenYamlIsReportedWithItsLine) {
  EXPECT_THAT(Problems("server:\n  listen: \"a:1\n"), HasSubstr("server.yaml:"));
  EXPECT_THAT(Problems("server: {listen: 'a:1'\nlog: ]\n"), HasSubstr("not YAML: "));
  EXPECT_THAT(Problems("a: *nowhere\n"), HasSubstr("server.yaml:1: not YAML: "));
  EXPECT_THAT(Problems("log: {level: info}\n---\nlog: {level: debug}\n"),
              HasSubstr("server.yaml:3: a second YAML document"));
  EXPECT_THAT(Problems("? [a, b]\n: c\n"), HasSubstr("a key is a list; it must be a word"));
}

TEST(ConfigTest, AFileThatCannotBeReadIsNotFound) {
  CommandLine command_line;
  command_line.config_path = testing::TempDir() + "/no-such-config.yaml";
  absl::Status status = LoadConfig(command_line).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("no-such-config.yaml: cannot be opened: No"));
  command_line.config_path = testing::TempDir();
  status = LoadConfig(command_line).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
}

TEST(ConfigTest, LoadsAFileAndNamesItInProblems) {
  CommandLine command_line;
  command_line.config_path = testing::TempDir() + "/ferrite-config-test.yaml";
  std::ofstream(command_line.config_path) << "log:\n  level: error\n";
  auto config = LoadConfig(command_line);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->log.level, "error");
  std::ofstream(command_line.config_path) << "log:\n  level: loud\n";
  config = LoadConfig(command_line);
  EXPECT_THAT(std::string(config.status().message()),
              HasSubstr(command_line.config_path + ":2: log.level is 'loud'"));
  std::filesystem::remove(command_line.config_path);
}

TEST(ConfigTest, PrintedConfigReadsBackEqual) {
  ServerConfig config;
  config.server.listen = "unix:/tmp/a \"quoted\" \\ na\xC3\xAFve: {path}";
  config.server.reflection = false;
  config.server.drain_grace_seconds = 0.1;
  config.workers = {WorkerConfig{{0}}, WorkerConfig{{0}}};
  config.scheduler.max_waiting_tokens = 123'456'789'012;
  config.defaults.top_p = 0.95;
  config.defaults.temperature = 1e-7;
  config.log.level = "debug";
  const auto read = Read(PrintConfig(config));
  ASSERT_TRUE(read.ok()) << read.status() << PrintConfig(config);
  EXPECT_EQ(*read, config);
}

TEST(ConfigTest, CommittedFileIsThePrintedDefault) {
  const std::string path = FERRITE_SOURCE_DIR "/config/server.yaml";
  EXPECT_EQ(ReadFileText(path), PrintConfig(ServerConfig()))
      << "write it anew: ferrite-server --print-config > config/server.yaml";
}

TEST(ConfigTest, EveryKeyIsInTheFormThatItExpects) {
  for (const ConfigKey& key : ConfigKeys()) {
    EXPECT_EQ(FindConfigKey(key.name), &key) << key.name;
    if (std::string_view(key.name) == "workers") continue;
    // Each default obeys its own bounds.
    ServerConfig config;
    std::string text = PrintValue(key, config);
    if (text.front() == '"') text = text.substr(1, text.size() - 2);
    EXPECT_TRUE(StoreScalar(key, text, &config)) << key.name << " " << text;
  }
}

TEST(ModelConfigTest, ServedNameIsTheNameOrTheLastFolder) {
  ServerConfig::Model model;
  EXPECT_EQ(model.served_name(), "stories260k");
  model.path = "/models/Llama-3.1-8B/";
  EXPECT_EQ(model.served_name(), "Llama-3.1-8B");
  model.path = "/models/x/.";
  EXPECT_EQ(model.served_name(), "x");
  model.path = ".";
  EXPECT_EQ(model.served_name(), std::filesystem::current_path().filename().string());
  model.name = "given";
  EXPECT_EQ(model.served_name(), "given");
}

}  // namespace
}  // namespace ferrite

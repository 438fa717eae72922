#include "server/command_line.h"

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/config.h"
#include "server/config_keys.h"
#include "server/config_values.h"

namespace ferrite {
namespace {

// What CLI11 parses into.
struct Flags {
  std::string config_path;
  std::map<std::string, std::string> values;  // by key
  bool check = false;
  bool print = false;
  bool version = false;
  bool help = false;
};

// A flag for each key that a single word can hold.
bool HasFlag(const ConfigKey& key) { return std::string_view(key.name) != "workers"; }

std::unique_ptr<CLI::App> MakeApp(Flags* flags) {
  auto app =
      std::make_unique<CLI::App>("Serves a decoder-only transformer over gRPC.", "ferrite-server");
  app->allow_extras();  // unknown flags get a better message than CLI11's
  app->set_help_flag();
  app->add_flag("-h,--help", flags->help, "Print this and exit");
  app->add_flag("--version", flags->version, "Print the version and exit");
  app->add_option("--config", flags->config_path, "A YAML file; without it the defaults apply")
      ->type_name("FILE");
  CLI::Option* check = app->add_flag("--check-config", flags->check,
                                     "Print what is wrong with the configuration, or ok, and exit");
  app->add_flag("--print-config", flags->print, "Print the whole configuration as YAML and exit")
      ->excludes(check);
  const ServerConfig defaults;
  for (const ConfigKey& key : ConfigKeys()) {
    if (!HasFlag(key)) continue;
    app->add_option(absl::StrCat("--", key.name), flags->values[key.name],
                    absl::StrCat(key.help, " Takes ", Expectation(key),
                                 "; default: ", PrintValue(key, defaults)))
        ->type_name("")
        ->group("Configuration keys");
  }
  return app;
}

std::string UnknownArgument(const std::string& argument) {
  if (argument.rfind("--", 0) != 0) return absl::StrCat("unexpected argument '", argument, "'");
  const std::string flag = argument.substr(0, argument.find('='));
  std::vector<std::string> known = {"--config", "--check-config", "--print-config", "--version",
                                    "--help"};
  for (const ConfigKey& key : ConfigKeys()) {
    if (HasFlag(key)) known.push_back(absl::StrCat("--", key.name));
  }
  return absl::StrCat("unknown flag '", flag, "'", DidYouMean(flag, known));
}

CommandLine::Mode ModeOf(const Flags& flags) {
  if (flags.help) return CommandLine::Mode::kHelp;
  if (flags.version) return CommandLine::Mode::kVersion;
  if (flags.check) return CommandLine::Mode::kCheckConfig;
  if (flags.print) return CommandLine::Mode::kPrintConfig;
  return CommandLine::Mode::kServe;
}

}  // namespace

absl::StatusOr<CommandLine> ParseCommandLine(int argc, const char* const* argv) {
  Flags flags;
  CommandLine command_line;
  try {
    const std::unique_ptr<CLI::App> app = MakeApp(&flags);
    app->parse(argc, argv);
    std::vector<std::string> problems;
    for (const std::string& argument : app->remaining()) {
      problems.push_back(absl::StrCat("command line: ", UnknownArgument(argument)));
    }
    if (!problems.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));
    for (const ConfigKey& key : ConfigKeys()) {
      if (!HasFlag(key) || app->count(absl::StrCat("--", key.name)) == 0) continue;
      command_line.overrides.push_back({key.name, flags.values[key.name]});
    }
    if (app->count("--config") > 0 && flags.config_path.empty()) {
      return absl::InvalidArgumentError("command line: --config is empty; it must be a file");
    }
  } catch (const CLI::Error& error) {
    return absl::InvalidArgumentError(absl::StrCat("command line: ", error.what()));
  }
  command_line.mode = ModeOf(flags);
  command_line.config_path = flags.config_path;
  return command_line;
}

std::string HelpText() {
  Flags flags;
  return MakeApp(&flags)->help();
}

std::variant<ServerConfig, int> Configure(int argc, const char* const* argv, std::ostream& out,
                                          std::ostream& err) {
  const absl::StatusOr<CommandLine> command_line = ParseCommandLine(argc, argv);
  if (!command_line.ok()) {
    err << command_line.status().message() << "\n";
    return 2;
  }
  if (command_line->mode == CommandLine::Mode::kHelp) {
    out << HelpText();
    return 0;
  }
  if (command_line->mode == CommandLine::Mode::kVersion) {
    out << "ferrite-server " << FERRITE_VERSION << "\n";
    return 0;
  }
  absl::StatusOr<ServerConfig> config = LoadConfig(*command_line);
  if (!config.ok()) {
    err << config.status().message() << "\n";
    return 2;
  }
  if (command_line->mode == CommandLine::Mode::kCheckConfig) {
    out << "ok\n";
    return 0;
  }
  if (command_line->mode == CommandLine::Mode::kPrintConfig) {
    out << PrintConfig(*config);
    return 0;
  }
  return *std::move(config);
}

}  // namespace ferrite

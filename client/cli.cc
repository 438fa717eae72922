#include "client/cli.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "client/abort.h"
#include "client/bench.h"
#include "client/bench_options.h"
#include "client/completion.h"
#include "client/connection.h"
#include "client/embed.h"
#include "client/exit_code.h"
#include "client/generate.h"
#include "client/health.h"
#include "client/info.h"
#include "client/input.h"
#include "client/options.h"
#include "client/security.h"
#include "client/token.h"
#include "client/tokens.h"

namespace ferrite {
namespace {

constexpr char kFooter[] =
    "Exit codes: 0 fine; 1 `health` found it not serving; 2 wrong usage, or a file that cannot be\n"
    "read or written; otherwise 10 plus the gRPC status code: 11 CANCELLED (Ctrl-C, or the output\n"
    "is read no more), 12 UNKNOWN, 13 INVALID_ARGUMENT, 14 DEADLINE_EXCEEDED, 15 NOT_FOUND,\n"
    "16 ALREADY_EXISTS, 17 PERMISSION_DENIED, 18 RESOURCE_EXHAUSTED (try again later),\n"
    "19 FAILED_PRECONDITION, 20 ABORTED, 21 OUT_OF_RANGE, 22 UNIMPLEMENTED, 23 INTERNAL,\n"
    "24 UNAVAILABLE (also when the TLS handshake fails), 25 DATA_LOSS (the output's disk is "
    "full),\n"
    "26 UNAUTHENTICATED (a token is missing or wrong). After several requests: that of the\n"
    "commonest failure.";

std::vector<CompletionOption> DescribeOptions(const CLI::App& app, CompletionCommand* command) {
  std::vector<CompletionOption> options;
  for (const CLI::Option* option : app.get_options()) {
    CompletionOption described;
    for (const std::string& name : option->get_lnames()) described.names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) described.names.push_back("-" + name);
    described.help = option->get_description();
    std::replace(described.help.begin(), described.help.end(), '\n', ' ');
    described.takes_value = option->get_items_expected_min() > 0;
    const std::string type = described.takes_value ? option->get_type_name() : "";
    described.is_file = type == "FILE";
    if (type.find('|') != std::string::npos) described.words = CLI::detail::split(type, '|');
    if (described.names.empty()) {  // a positional argument
      command->words = described.words;
    } else {
      options.push_back(std::move(described));
    }
  }
  return options;
}

CompletionCommand Describe(const CLI::App& app) {
  CompletionCommand command;
  command.name = app.get_name();
  command.help = app.get_description();
  command.options = DescribeOptions(app, &command);
  for (const CLI::App* subcommand : app.get_subcommands([](const CLI::App*) { return true; })) {
    command.commands.push_back(Describe(*subcommand));
  }
  return command;
}

}  // namespace

int RunClient(int argc, const char* const* argv, const Console& console) {
  for (int i = 1; i < argc; ++i) {
    if (IsUtf8(argv[i])) continue;
    return ReportUsage("argument " + std::to_string(i) + " is not valid UTF-8", console.err);
  }
  ConnectionOptions connection;
  SecurityOptions security;
  TokenOptions token;
  GenerateOptions generate;
  EmbedOptions embed;
  TokenizeOptions tokenize;
  DetokenizeOptions detokenize;
  InfoOptions info;
  HealthOptions health;
  AbortOptions abort;
  BenchOptions bench;
  std::optional<std::string> shell;
  CLI::App app("Talks to a Ferrite server.", "ferrite");
  try {
    app.set_version_flag("--version", std::string("ferrite ") + FERRITE_VERSION);
    app.footer(kFooter);
    app.require_subcommand(1);
    app.fallthrough();  // so that the options below may follow the subcommand
    app.add_option("--server", connection.server, "Its address: host:port or unix:/path")
        ->capture_default_str();
    AddSeconds(&app, "--timeout", &connection.timeout_seconds,
               "End each call with DEADLINE_EXCEEDED after so long");
    AddSecurity(&app, &security);
    const CLI::App* generate_command = AddGenerate(&app, &generate);
    const CLI::App* embed_command = AddEmbed(&app, &embed);
    const CLI::App* tokenize_command = AddTokenize(&app, &tokenize);
    const CLI::App* detokenize_command = AddDetokenize(&app, &detokenize);
    const CLI::App* info_command = AddInfo(&app, &info);
    const CLI::App* health_command = AddHealth(&app, &health);
    const CLI::App* bench_command = AddBench(&app, &bench);
    const CLI::App* token_command = AddToken(&app, &token);
    CLI::App* completion_command =
        app.add_subcommand("completion", "Print a script that completes commands in a shell");
    AddChoice(completion_command, "SHELL", &shell, {"bash", "zsh", "fish"}, "Your shell")
        ->required();
    AddAbort(&app, &abort);

    app.parse(argc, argv);
    if (*token_command) return RunToken(token, console);
    if (*completion_command) {
      console.out << CompletionScript(*shell, Describe(app));
      return kExitOk;
    }
    if (const auto problem = ApplySecurity(security, std::getenv("FERRITE_TOKEN"), &connection)) {
      return ReportUsage(*problem, console.err);
    }
    if (*generate_command) return RunGenerate(generate, connection, console);
    if (*embed_command) return RunEmbed(embed, connection, console);
    if (*tokenize_command) return RunTokenize(tokenize, connection, console);
    if (*detokenize_command) return RunDetokenize(detokenize, connection, console);
    if (*info_command) return RunInfo(info, connection, console);
    if (*health_command) return RunHealth(health, connection, console);
    if (*bench_command) return RunBench(bench, connection, console);
    return RunAbort(abort, connection, console);
  } catch (const CLI::Success& asked) {  // --help, --version
    app.exit(asked, console.out, console.err);
    return kExitOk;
  } catch (const CLI::Error& error) {
    ReportUsage(error.what(), console.err);
    console.err << "Run ferrite --help, or ferrite COMMAND --help, for more.\n";
    return kExitUsage;
  }
}

}  // namespace ferrite

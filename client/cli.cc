#include "client/cli.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <string>

#include "client/abort.h"
#include "client/bench.h"
#include "client/connection.h"
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
    "Exit codes: 0 fine; 1 `health` found it not serving; 2 wrong usage; otherwise 10 plus the\n"
    "gRPC status code, such as 11 CANCELLED (Ctrl-C), 13 INVALID_ARGUMENT, 14 DEADLINE_EXCEEDED,\n"
    "15 NOT_FOUND, 18 RESOURCE_EXHAUSTED, 22 UNIMPLEMENTED, 23 INTERNAL, 24 UNAVAILABLE (also\n"
    "when the TLS handshake fails), 26 UNAUTHENTICATED (a token is missing or wrong).";

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
  TokenizeOptions tokenize;
  DetokenizeOptions detokenize;
  InfoOptions info;
  HealthOptions health;
  AbortOptions abort;
  BenchOptions bench;
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
    const CLI::App* tokenize_command = AddTokenize(&app, &tokenize);
    const CLI::App* detokenize_command = AddDetokenize(&app, &detokenize);
    const CLI::App* info_command = AddInfo(&app, &info);
    const CLI::App* health_command = AddHealth(&app, &health);
    const CLI::App* bench_command = AddBench(&app, &bench);
    const CLI::App* token_command = AddToken(&app, &token);
    AddAbort(&app, &abort);

    app.parse(argc, argv);
    if (*token_command) return RunToken(token, console);
    if (const auto problem = ApplySecurity(security, std::getenv("FERRITE_TOKEN"), &connection)) {
      return ReportUsage(*problem, console.err);
    }
    if (*generate_command) return RunGenerate(generate, connection, console);
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

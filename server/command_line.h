// The server's command line.
#pragma once

#include <iosfwd>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"

namespace ferrite {

struct ServerConfig;

struct CommandLine {
  enum class Mode { kServe, kCheckConfig, kPrintConfig, kVersion, kHelp };
  struct Override {
    std::string key;    // "server.listen"
    std::string value;  // as written; LoadConfig parses it
  };

  Mode mode = Mode::kServe;
  std::string config_path;  // empty: defaults only
  std::vector<Override> overrides;
};

// InvalidArgument says what is unknown, repeated or lacks its value.
absl::StatusOr<CommandLine> ParseCommandLine(int argc, const char* const* argv);

// What --help prints: every flag with its meaning, bounds and default.
std::string HelpText();

// The config to serve with; or, when there is nothing to serve, the exit code: 0 after --help,
// --version, --print-config and a --check-config that found nothing wrong (answered on `out`), 2
// after a wrong command line or config (explained on `err`).
std::variant<ServerConfig, int> Configure(int argc, const char* const* argv, std::ostream& out,
                                          std::ostream& err);

}  // namespace ferrite

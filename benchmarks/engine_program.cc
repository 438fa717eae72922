#include "benchmarks/engine_program.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <utility>
#include <vector>

#include "engine/model/checkpoint.h"
#include "engine/status_macros.h"
#include "server/backend_factory.h"
#include "server/command_line.h"
#include "server/engine_options.h"

namespace ferrite {

std::variant<ServerConfig, int> ParseArguments(int argc, char** argv, const std::string& subcommand,
                                               CLI::App* app) {
  const auto divider = std::find(argv, argv + argc, std::string("--"));
  auto configured = Configure(static_cast<int>(divider - argv), argv, std::cout, std::cerr);
  if (std::holds_alternative<int>(configured)) {
    return configured;
  }
  std::vector<std::string> arguments(std::min(divider + 1, argv + argc), argv + argc);
  if (!subcommand.empty()) {
    arguments.insert(arguments.begin(), subcommand);
  }
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes them
  try {
    app->parse(arguments);
  } catch (const CLI::ParseError& error) {
    return app->exit(error);
  }
  return configured;
}

absl::StatusOr<LoadedEngine> LoadEngine(const ServerConfig& config) {
  const std::string& path = config.model.path;
  LoadedEngine loaded;
  ASSIGN_OR_RETURN(loaded.model, LoadServedModel(path, config.model.served_name()));
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(path));
  ASSIGN_OR_RETURN(auto backends, CreateBackends(config, loaded.model.config, *checkpoint));
  ASSIGN_OR_RETURN(
      loaded.engine,
      Engine::Create(ToEngineOptions(config), loaded.model.tokenizer.get(), std::move(backends)));
  return loaded;
}

}  // namespace ferrite

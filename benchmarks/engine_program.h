// What programs that run the engine of a server, without the server, have in common.
#pragma once

#include <memory>
#include <string>
#include <variant>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "server/config.h"
#include "server/served_model.h"

namespace CLI {
class App;
}  // namespace CLI

namespace ferrite {

// Takes the arguments before "--" as ferrite-server does, and gives the others to `app`, after
// `subcommand` unless that is empty. The server's config, or the exit code to end with.
std::variant<ServerConfig, int> ParseArguments(int argc, char** argv, const std::string& subcommand,
                                               CLI::App* app);

struct LoadedEngine {
  ServedModel model;
  std::unique_ptr<Engine> engine;  // after the model, whose tokenizer it uses
};

// The engine that a server of this config would have.
absl::StatusOr<LoadedEngine> LoadEngine(const ServerConfig& config);

}  // namespace ferrite

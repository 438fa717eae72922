// `ferrite info`.
#pragma once

#include "client/connection.h"
#include "client/console.h"

namespace CLI {
class App;
}  // namespace CLI

namespace ferrite {

struct InfoOptions {
  bool json = false;
};

CLI::App* AddInfo(CLI::App* app, InfoOptions* options);

// Prints what the server says of itself, its model and its load: lines for people, or one JSON
// object with the members server, model and load, named as in control.proto. Returns the exit code.
int RunInfo(const InfoOptions& options, const ConnectionOptions& connection_options,
            const Console& console);

}  // namespace ferrite

// `ferrite abort`.
#pragma once

#include <string>

#include "client/connection.h"
#include "client/console.h"

namespace CLI {
class App;
}  // namespace CLI

namespace ferrite {

struct AbortOptions {
  std::string request_id;
};

CLI::App* AddAbort(CLI::App* app, AbortOptions* options);

// Ends the request in flight with that id. Returns the exit code.
int RunAbort(const AbortOptions& options, const ConnectionOptions& connection_options,
             const Console& console);

}  // namespace ferrite

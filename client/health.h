// `ferrite health`.
#pragma once

#include <optional>
#include <string>

#include "client/connection.h"
#include "client/console.h"

namespace CLI {
class App;
}  // namespace CLI

namespace ferrite {

struct HealthOptions {
  std::string service = "ferrite.v1.Inference";  // readiness; empty is liveness
  std::optional<double> wait_seconds;
};

CLI::App* AddHealth(CLI::App* app, HealthOptions* options);

// Prints the serving status. 0 if it is SERVING, kExitNotServing if it is another, or the code of
// the call's failure. With wait_seconds it asks again until it is SERVING or the time is over.
int RunHealth(const HealthOptions& options, const ConnectionOptions& connection_options,
              const Console& console);

}  // namespace ferrite

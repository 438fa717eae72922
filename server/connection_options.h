// How connections live: pings, idleness, age.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "server/config.h"

namespace ferrite {

// gRPC's channel arguments for these settings (grpc_types.h has what each means). What is 0, for
// "never" or "any number", is left to gRPC where its default is the same.
std::vector<std::pair<std::string, int>> ConnectionArguments(
    const ServerConfig::Connections& connections);

}  // namespace ferrite

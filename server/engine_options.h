// What a server's config says to its engine.
#pragma once

#include "engine/engine.h"
#include "server/config.h"

namespace ferrite {

EngineOptions ToEngineOptions(const ServerConfig& config);

}  // namespace ferrite

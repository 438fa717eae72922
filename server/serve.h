// The life of a server process: start, serve, drain, end.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/clock.h"
#include "server/log.h"
#include "server/server.h"

namespace ferrite {

using ServerFactory = std::function<absl::StatusOr<std::unique_ptr<Server>>()>;

// How the process is to end.
struct ServeEnd {
  // 0 after a drain, 1 if the server could not start, 3 if a worker or its device did not end.
  int exit_code = 0;
  // Threads are left that may never end: std::_Exit, for returning from main would wait for them or
  // pull their memory away.
  bool threads_left = false;
};

// Makes the server by `create` and serves until SIGTERM or SIGINT, then drains; each turn is
// logged. The signals are blocked in the calling thread and those it starts; one that comes during
// `create` ends the start. `logger` and what `create` refers to live until the process ends.
ServeEnd Serve(const Logger& logger, Clock::time_point process_start, const ServerFactory& create);

}  // namespace ferrite

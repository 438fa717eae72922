#include "server/connection_options.h"

#include <grpc/grpc.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace ferrite {
namespace {

// At least 1, so that no time is taken for none.
int Milliseconds(double seconds) {
  return static_cast<int>(std::max(1.0, std::ceil(seconds * 1e3)));
}

}  // namespace

std::vector<std::pair<std::string, int>> ConnectionArguments(
    const ServerConfig::Connections& connections) {
  std::vector<std::pair<std::string, int>> arguments = {
      // A client with no call in flight may ping as often as one that has some: without this, gRPC
      // allows it one ping in two hours.
      {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
      {GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
       connections.min_ping_seconds == 0 ? 0 : Milliseconds(connections.min_ping_seconds)},
      {GRPC_ARG_KEEPALIVE_TIME_MS, connections.keepalive_seconds == 0
                                       ? std::numeric_limits<int>::max()  // gRPC's "never"
                                       : Milliseconds(connections.keepalive_seconds)},
      {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(connections.keepalive_timeout_seconds)},
      // Pings go on while a request waits and there is nothing to send.
      {GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0}};
  const auto add_unless_zero = [&arguments](const char* name, double seconds) {
    if (seconds > 0) arguments.emplace_back(name, Milliseconds(seconds));
  };
  add_unless_zero(GRPC_ARG_MAX_CONNECTION_IDLE_MS, connections.max_idle_seconds);
  add_unless_zero(GRPC_ARG_MAX_CONNECTION_AGE_MS, connections.max_age_seconds);
  add_unless_zero(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, connections.max_age_grace_seconds);
  if (connections.max_streams > 0) {
    arguments.emplace_back(GRPC_ARG_MAX_CONCURRENT_STREAMS, connections.max_streams);
  }
  return arguments;
}

}  // namespace ferrite

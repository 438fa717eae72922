// ferrite-server: serves one model over gRPC until SIGTERM or SIGINT.
#include <google/protobuf/stubs/logging.h>

#include <csignal>
#include <cstring>
#include <iostream>
#include <variant>

#include "engine/clock.h"
#include "server/command_line.h"
#include "server/config.h"
#include "server/log.h"
#include "server/server.h"

namespace ferrite {
namespace {

// Blocks the signals that end the server, in this thread and those it starts: main waits for them.
sigset_t BlockEndSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

// Whether one of the signals has come; does not wait.
bool TakeSignal(const sigset_t& signals) {
  const timespec no_time = {};
  return sigtimedwait(&signals, nullptr, &no_time) > 0;
}

int Serve(const ServerConfig& config, Clock::time_point process_start) {
  const sigset_t signals = BlockEndSignals();
  const Logger logger(*ParseLogFormat(config.log.format), *ParseLogLevel(config.log.level));
  logger.Log(LogLevel::kInfo, "starting",
             {{"version", FERRITE_VERSION}, {"model", config.model.path}});
  // Protobuf would print a line for every string of a client that is not UTF-8; the client is told.
  google::protobuf::SetLogHandler(nullptr);
  auto server = Server::Create(config, &logger, process_start);
  if (!server.ok()) {
    logger.Log(LogLevel::kError, "start_failed",
               {{"status", absl::StatusCodeToString(server.status().code())},
                {"message", server.status().message()}});
    return 1;
  }
  const BackendInfo& worker = (*server)->engine().worker_info(0);
  logger.Log(LogLevel::kInfo, "ready",
             {{"listen", config.server.listen},
              {"port", (*server)->port()},
              {"model", config.model.served_name()},
              {"workers", (*server)->engine().num_workers()},
              {"device", worker.device},
              {"compute_type", worker.compute_type},
              {"kv_blocks", worker.num_blocks},
              {"context", (*server)->engine().context_length()},
              {"seconds", SecondsBetween(process_start, Clock::now())}});
  int signal = 0;
  sigwait(&signals, &signal);
  logger.Log(LogLevel::kInfo, "draining",
             {{"signal", strsignal(signal)}, {"in_flight", (*server)->engine().num_in_flight()}});
  const int32_t cancelled = (*server)->Drain([&] {
    static bool hurry = false;
    return hurry = hurry || TakeSignal(signals);
  });
  server->reset();
  logger.Log(LogLevel::kInfo, "stopped", {{"cancelled", cancelled}});
  return 0;
}

}  // namespace
}  // namespace ferrite

int main(int argc, char** argv) {
  const auto process_start = ferrite::Clock::now();
  const auto configured = ferrite::Configure(argc, argv, std::cout, std::cerr);
  if (const int* exit_code = std::get_if<int>(&configured)) {
    return *exit_code;
  }
  return ferrite::Serve(std::get<ferrite::ServerConfig>(configured), process_start);
}

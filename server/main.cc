// ferrite-server: serves one model over gRPC until SIGTERM or SIGINT.
#include <google/protobuf/stubs/logging.h>

#include <cstdlib>
#include <iostream>
#include <variant>

#include "engine/clock.h"
#include "server/command_line.h"
#include "server/config.h"
#include "server/log.h"
#include "server/serve.h"
#include "server/server.h"

int main(int argc, char** argv) {
  const auto process_start = ferrite::Clock::now();
  const auto configured = ferrite::Configure(argc, argv, std::cout, std::cerr);
  if (const int* exit_code = std::get_if<int>(&configured)) {
    return *exit_code;
  }
  const auto& config = std::get<ferrite::ServerConfig>(configured);
  const ferrite::Logger logger(*ferrite::ParseLogFormat(config.log.format),
                               *ferrite::ParseLogLevel(config.log.level));
  logger.Log(ferrite::LogLevel::kInfo, "starting",
             {{"version", FERRITE_VERSION}, {"model", config.model.path}});
  // Protobuf would print a line for every string of a client that is not UTF-8; the client is told.
  google::protobuf::SetLogHandler(nullptr);
  const ferrite::ServeEnd end = ferrite::Serve(logger, process_start, [&] {
    return ferrite::Server::Create(config, &logger, process_start);
  });
  if (end.threads_left) {
    std::_Exit(end.exit_code);  // stderr is unbuffered: the log is out
  }
  return end.exit_code;
}

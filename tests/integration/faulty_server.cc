// The server's main around a backend that hangs or fails: `faulty_server hang|fail|hang-start`.
#include <cstdlib>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/serve.h"
#include "tests/testing/fake_backend.h"

namespace ferrite {
namespace {

constexpr uint64_t kFaultyStep = 5;

absl::StatusOr<std::unique_ptr<Server>> CreateServer(const std::string& fault,
                                                     const Logger& logger) {
  if (fault == "hang-start") {
    logger.Log(LogLevel::kInfo, "hanging");
    std::promise<void>().get_future().wait_for(std::chrono::hours(1));
  }
  ServerConfig config;
  config.server.listen = "127.0.0.1:0";
  config.server.drain_grace_seconds = 0;
  config.server.drain_timeout_seconds = 600;
  config.server.stuck_step_seconds = 1;
  config.server.stuck_grace_seconds = 600;
  config.scheduler.max_running = 16;
  config.scheduler.max_step_tokens = 64;
  config.model.path = FERRITE_SOURCE_DIR "/models/stories260k";
  auto model = LoadServedModel(config.model.path, "faulty");
  if (!model.ok()) {
    return model.status();
  }
  auto backend = std::make_unique<test::FakeBackend>(test::FakeBackendOptions());
  fault == "fail" ? backend->FailWaitAt(kFaultyStep) : backend->HangAt(kFaultyStep);
  std::vector<std::unique_ptr<Backend>> backends;
  backends.push_back(std::move(backend));
  return Server::CreateWithBackends(config, *std::move(model), std::move(backends), &logger,
                                    Clock::now());
}

}  // namespace
}  // namespace ferrite

int main(int argc, char** argv) {
  const std::string fault = argc > 1 ? argv[1] : "";
  const ferrite::Logger logger(ferrite::LogFormat::kText, ferrite::LogLevel::kInfo);
  const ferrite::ServeEnd end = ferrite::Serve(
      logger, ferrite::Clock::now(), [&] { return ferrite::CreateServer(fault, logger); });
  if (end.threads_left) {
    std::_Exit(end.exit_code);
  }
  return end.exit_code;
}

#include "server/serve.h"

#include <grpc/grpc.h>

#include <csignal>
#include <cstring>
#include <future>
#include <string>
#include <thread>
#include <utility>

namespace ferrite {
namespace {

// What workers and devices get to end in, once their requests have.
constexpr std::chrono::seconds kTeardown(5);
constexpr std::chrono::milliseconds kStartPoll(5);

sigset_t BlockEndSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

// The signal that has come, or 0; does not wait.
int TakeSignal(const sigset_t& signals) {
  const timespec no_time = {};
  const int signal = sigtimedwait(&signals, nullptr, &no_time);
  return signal > 0 ? signal : 0;
}

// Runs `work` on a thread of its own.
template <typename Result>
std::future<Result> InBackground(std::function<Result()> work) {
  std::packaged_task<Result()> task(std::move(work));
  std::future<Result> result = task.get_future();
  std::thread(std::move(task)).detach();
  return result;
}

void LogReady(const Logger& logger, const Server& server, Clock::time_point process_start) {
  const Engine& engine = server.engine();
  const BackendInfo& worker = engine.worker_info(0);
  if (!worker.remarks.empty()) {
    logger.Log(LogLevel::kInfo, "backend", {{"message", worker.remarks}});
  }
  logger.Log(LogLevel::kInfo, "ready",
             {{"listen", server.config().server.listen},
              {"port", server.port()},
              {"metrics_port", server.metrics_port()},
              {"model", server.config().model.served_name()},
              {"workers", engine.num_workers()},
              {"device", worker.device},
              {"compute_type", worker.compute_type},
              {"kv_blocks", worker.num_blocks},
              {"context", engine.context_length()},
              {"deterministic", worker.deterministic},
              {"fingerprint", server.fingerprint()},
              {"seconds", SecondsBetween(process_start, Clock::now())}});
}

// What gRPC's own end may take.
constexpr std::chrono::milliseconds kGrpcEnd(500);

// Why a server may not end.
std::string Suspicion(const Engine& engine) {
  for (size_t i = 0; i < engine.num_workers(); ++i) {
    if (const absl::Status health = engine.WorkerHealth(i); !health.ok()) {
      return std::string(health.message());
    }
  }
  return "a worker's step has not ended";
}

// Destroys the server, but does not wait for ever: a device that hangs takes its worker with it.
bool DestroyInTime(const Logger& logger, std::unique_ptr<Server> server) {
  const std::string suspicion = Suspicion(server->engine());
  const auto destroyed = InBackground<void>([last = server.release()] { delete last; });
  if (destroyed.wait_for(kTeardown) == std::future_status::ready) {
    return true;
  }
  logger.Log(LogLevel::kError, "abandoned",
             {{"message", suspicion}, {"waited_seconds", kTeardown.count()}});
  return false;
}

}  // namespace

ServeEnd Serve(const Logger& logger, Clock::time_point process_start, const ServerFactory& create) {
  const sigset_t signals = BlockEndSignals();
  auto starting = InBackground<absl::StatusOr<std::unique_ptr<Server>>>(create);
  while (starting.wait_for(kStartPoll) != std::future_status::ready) {
    if (const int signal = TakeSignal(signals); signal != 0) {
      logger.Log(LogLevel::kInfo, "stopped",
                 {{"signal", strsignal(signal)}, {"message", "while starting"}});
      return {.exit_code = 0, .threads_left = true};
    }
  }
  absl::StatusOr<std::unique_ptr<Server>> server = starting.get();
  if (!server.ok()) {
    logger.Log(LogLevel::kError, "start_failed",
               {{"status", absl::StatusCodeToString(server.status().code())},
                {"message", server.status().message()}});
    return {.exit_code = 1};
  }
  // gRPC's own end is not the server's: it can wait 10 s for a poller that is asleep.
  grpc_init();
  LogReady(logger, **server, process_start);
  int signal = 0;
  sigwait(&signals, &signal);
  logger.Log(LogLevel::kInfo, "draining",
             {{"signal", strsignal(signal)}, {"in_flight", (*server)->engine().num_in_flight()}});
  bool hurry = false;
  const int32_t cancelled =
      (*server)->Drain([&] { return hurry = hurry || TakeSignal(signals) != 0; });
  if (!DestroyInTime(logger, *std::move(server))) {
    return {.exit_code = 3, .threads_left = true};
  }
  logger.Log(LogLevel::kInfo, "stopped", {{"cancelled", cancelled}});
  const auto ended = InBackground<void>([] { grpc_shutdown(); });
  return {.exit_code = 0, .threads_left = ended.wait_for(kGrpcEnd) != std::future_status::ready};
}

}  // namespace ferrite

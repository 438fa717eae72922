// The whole server: model, engine, services, health and drain.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/clock.h"
#include "engine/engine.h"
#include "server/authenticator.h"
#include "server/call_log.h"
#include "server/config.h"
#include "server/control_service.h"
#include "server/inference_service.h"
#include "server/load_report.h"
#include "server/log.h"
#include "server/metrics_server.h"
#include "server/served_model.h"
#include "server/tls_credentials.h"
#include "server/tokenizing_pool.h"
#include "server/write_watch.h"

namespace ferrite {

// Serves from Create until Drain or destruction. Thread-safe.
class Server {
 public:
  // Loads the model and the backends of `config`, listens, and becomes ready. Errors say what is
  // wrong with the model's files, the config or the address. `logger` must outlive the server.
  static absl::StatusOr<std::unique_ptr<Server>> Create(const ServerConfig& config,
                                                        const Logger* logger,
                                                        Clock::time_point process_start);

  // The same around given backends (tests serve a scripted one).
  static absl::StatusOr<std::unique_ptr<Server>> CreateWithBackends(
      const ServerConfig& config, ServedModel model, std::vector<std::unique_ptr<Backend>> backends,
      const Logger* logger, Clock::time_point process_start);

  // Cancels what is in flight. Waits for the workers, so that one that hangs makes it hang.
  ~Server();

  // Readiness turns NOT_SERVING; new requests are still taken for drain_grace_seconds; then
  // admission closes and what is in flight may finish within drain_timeout_seconds; the rest is
  // cancelled. What a stuck worker holds fails with INTERNAL at once. `hurry` is polled: once it
  // returns true, what is left is cancelled at once. Returns how many requests were cancelled.
  int32_t Drain(const std::function<bool()>& hurry);

  // The TCP port listened on; 0 for a Unix socket.
  int port() const { return port_; }
  // That of the metrics; 0 if they are off.
  int metrics_port() const { return metrics_ == nullptr ? 0 : metrics_->port(); }
  const ServerConfig& config() const { return config_; }
  const std::string& fingerprint() const { return model_.fingerprint; }
  const Engine& engine() const { return *engine_; }
  int32_t active_calls() const { return inference_->active_calls(); }

 private:
  Server(const ServerConfig& config, ServedModel model, const Logger* logger);
  absl::Status TakeFingerprint();
  absl::Status Secure();
  absl::Status Listen(Clock::time_point process_start);
  void SetHealth(const char* service, bool serving);
  void WatchHealth();
  bool LogWorkerHealth(std::vector<bool>* healthy) const;
  void Shutdown(std::chrono::milliseconds patience);

  const ServerConfig config_;
  ServedModel model_;
  const Logger* const logger_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<TlsCredentials> tls_;  // null: plain text
  std::unique_ptr<Authenticator> authenticator_;
  std::unique_ptr<WriteWatch> write_watch_;
  std::unique_ptr<LoadReporter> load_reporter_;
  std::unique_ptr<CallLog> call_log_;
  std::unique_ptr<InferenceService> inference_;
  std::unique_ptr<ControlService> control_;
  std::unique_ptr<TokenizingPool> tokenizing_pool_;  // after what its jobs use
  std::unique_ptr<grpc::Server> grpc_;               // after what its handlers use
  std::unique_ptr<MetricsServer> metrics_;           // null: off
  int port_ = 0;
  bool shut_down_ = false;

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread health_;
};

}  // namespace ferrite

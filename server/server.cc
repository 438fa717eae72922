#include "server/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <future>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_digest.h"
#include "engine/status_macros.h"
#include "engine/thread_name.h"
#include "grpc/health/v1/health.pb.h"
#include "server/backend_factory.h"
#include "server/connection_options.h"
#include "server/engine_options.h"
#include "server/fingerprint.h"
#include "server/read_file.h"
#include "server/unix_socket.h"

namespace ferrite {
namespace {

constexpr char kLiveness[] = "";
constexpr char kReadiness[] = "ferrite.v1.Inference";
constexpr std::chrono::milliseconds kHealthPeriod(500);
constexpr std::chrono::milliseconds kDrainPoll(10);
// What Tokenize, GetLoad and the like may take once everything else has ended.
constexpr std::chrono::milliseconds kShortCalls(200);

// What Secure reads again, looked at before the model is loaded, which can take minutes.
absl::Status CheckSecurityFiles(const ServerConfig& config) {
  if (config.tls.enabled()) {
    RETURN_IF_ERROR(ReadTlsFiles(config.tls).status());
  }
  if (const std::string& path = config.auth.token_file; !path.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadConfiguredFile("auth.token_file", path));
    RETURN_IF_ERROR(ParseTokenFile(path, text).status());
  }
  return absl::OkStatus();
}

// Whether what is sent to this address stays on the machine.
bool IsLocal(const std::string& listen) {
  return absl::StartsWith(listen, "unix:") || absl::StartsWith(listen, "127.") ||
         absl::StartsWith(listen, "localhost:") || absl::StartsWith(listen, "[::1]:");
}

std::string CannotListen(const std::string& address, bool is_unix) {
  return absl::StrCat("server.listen is '", address, "'; the server cannot listen there: ",
                      is_unix ? "the folder must exist, and the server be allowed to write to it"
                              : "the address is in use or not one of this machine's");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Create(const ServerConfig& config,
                                                       const Logger* logger,
                                                       Clock::time_point process_start) {
  RETURN_IF_ERROR(CheckSecurityFiles(config));
  const std::string& path = config.model.path;
  ASSIGN_OR_RETURN(ServedModel model, LoadServedModel(path, config.model.served_name()));
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(path));
  // While the backends read the same files.
  std::future<absl::StatusOr<std::string>> digest = std::async(std::launch::async, [&path,
                                                                                    &checkpoint] {
    return DigestModel(path, *checkpoint, static_cast<int>(std::thread::hardware_concurrency()));
  });
  ASSIGN_OR_RETURN(std::vector<std::unique_ptr<Backend>> backends,
                   CreateBackends(config, model.config, *checkpoint));
  ASSIGN_OR_RETURN(model.digest, digest.get());
  return CreateWithBackends(config, std::move(model), std::move(backends), logger, process_start);
}

absl::StatusOr<std::unique_ptr<Server>> Server::CreateWithBackends(
    const ServerConfig& config, ServedModel model, std::vector<std::unique_ptr<Backend>> backends,
    const Logger* logger, Clock::time_point process_start) {
  std::unique_ptr<Server> server(new Server(config, std::move(model), logger));
  ASSIGN_OR_RETURN(
      server->engine_,
      Engine::Create(ToEngineOptions(config), server->model_.tokenizer.get(), std::move(backends)));
  RETURN_IF_ERROR(server->TakeFingerprint());
  RETURN_IF_ERROR(server->Secure());
  RETURN_IF_ERROR(server->Listen(process_start));
  return server;
}

Server::Server(const ServerConfig& config, ServedModel model, const Logger* logger)
    : config_(config), model_(std::move(model)), logger_(logger) {}

absl::Status Server::TakeFingerprint() {
  std::vector<const BackendInfo*> workers;
  for (size_t i = 0; i < engine_->num_workers(); ++i) {
    workers.push_back(&engine_->worker_info(i));
  }
  ASSIGN_OR_RETURN(model_.fingerprint, Fingerprint(model_.digest, workers));
  return absl::OkStatus();
}

absl::Status Server::Secure() {
  if (config_.tls.enabled()) {
    ASSIGN_OR_RETURN(tls_, TlsCredentials::Create(config_.tls, logger_));
  } else if (!config_.auth.token_file.empty() && !IsLocal(config_.server.listen)) {
    logger_->Log(
        LogLevel::kWarning, "tokens_in_plain_text",
        {{"listen", config_.server.listen},
         {"message", "whoever sees the traffic can take the tokens: set tls.certificate"}});
  }
  ASSIGN_OR_RETURN(
      authenticator_,
      Authenticator::Create(config_.auth, config_.limits.max_requests_per_client, logger_));
  return absl::OkStatus();
}

absl::Status Server::Listen(Clock::time_point process_start) {
  write_watch_ = std::make_unique<WriteWatch>(config_.server.slow_reader_seconds, logger_);
  load_reporter_ = std::make_unique<LoadReporter>(engine_.get(), config_.server.orca);
  call_log_ = std::make_unique<CallLog>(logger_, config_.log.access, model_.name);
  tokenizing_pool_ = std::make_unique<TokenizingPool>(TokenizingPool::DefaultThreads());
  const RequestContext context{&model_, engine_.get(), config_.defaults, config_.limits};
  inference_ = std::make_unique<InferenceService>(authenticator_.get(), context, engine_.get(),
                                                  write_watch_.get(), load_reporter_.get(),
                                                  call_log_.get(), tokenizing_pool_.get());
  control_ = std::make_unique<ControlService>(authenticator_.get(), context, engine_.get(),
                                              write_watch_.get(), call_log_.get(),
                                              config_.server.max_message_bytes, process_start);

  // Both are process-wide switches of gRPC; they act on servers built afterwards.
  grpc::EnableDefaultHealthCheckService(true);
  if (config_.server.reflection) {
    // Reflection describes what is linked, and nothing else of ours uses the messages of health.
    (void)grpc::health::v1::HealthCheckRequest::descriptor();
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  }
  grpc::ServerBuilder builder;
  // Without this, a second server on the same port would silently share its connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  for (const auto& [name, value] : ConnectionArguments(config_.connections)) {
    builder.AddChannelArgument(name, value);
  }
  builder.SetMaxReceiveMessageSize(config_.server.max_message_bytes);
  builder.SetMaxSendMessageSize(-1);
  builder.AddListeningPort(config_.server.listen,
                           tls_ != nullptr ? tls_->port() : grpc::InsecureServerCredentials(),
                           &port_);
  builder.RegisterService(inference_.get());
  builder.RegisterService(control_.get());
  const std::optional<std::string> unix_path = UnixSocketPath(config_.server.listen);
  if (unix_path.has_value()) {
    RETURN_IF_ERROR(CheckUnixSocket(*unix_path));
    const ScopedFileMode mode(ParseFileMode(config_.server.unix_socket_mode));
    grpc_ = builder.BuildAndStart();
    port_ = 0;
  } else {
    grpc_ = builder.BuildAndStart();
  }
  if (grpc_ == nullptr || (port_ == 0 && !unix_path.has_value())) {
    return absl::UnavailableError(CannotListen(config_.server.listen, unix_path.has_value()));
  }
  if (!config_.metrics.listen.empty()) {
    const MetricsSources sources{&model_, engine_.get(), call_log_.get(), write_watch_.get()};
    ASSIGN_OR_RETURN(metrics_, MetricsServer::Create(config_.metrics.listen, sources));
  }
  SetHealth(kLiveness, true);
  SetHealth(kReadiness, true);
  control_->MarkReady();
  health_ = std::thread([this] { WatchHealth(); });
  return absl::OkStatus();
}

Server::~Server() {
  Shutdown(std::chrono::milliseconds(0));
  if (health_.joinable()) {
    {
      MutexLock lock(&mutex_);
      stopping_ = true;
      changed_.NotifyAll();
    }
    health_.join();
  }
}

// One name at a time: gRPC's calls for all of them would turn liveness too.
void Server::SetHealth(const char* service, bool serving) {
  grpc_->GetHealthCheckService()->SetServingStatus(service, serving);
}

// A worker that failed, or whose step has stopped making progress, turns liveness and readiness.
void Server::WatchHealth() {
  SetThreadName("ferrite-health");
  std::vector<bool> healthy(engine_->num_workers(), true);
  bool were_well = true;
  while (true) {
    bool draining = false;
    {
      MutexLock lock(&mutex_);
      if (!stopping_) {
        changed_.WaitUntil(&mutex_, Clock::now() + kHealthPeriod);
      }
      if (stopping_) {
        return;
      }
      draining = draining_;
    }
    const bool all_well = LogWorkerHealth(&healthy);
    if (all_well != were_well) {
      were_well = all_well;
      MutexLock lock(&mutex_);
      SetHealth(kLiveness, all_well);
      SetHealth(kReadiness, all_well && !draining_);
    }
    if (const int32_t failed =
            engine_->FailStuckRequests(draining ? 0 : config_.server.stuck_grace_seconds);
        failed > 0) {
      logger_->Log(LogLevel::kError, "stuck_requests_failed", {{"requests", failed}});
    }
  }
}

// Logs what has changed since `healthy`, by worker; returns whether all are.
bool Server::LogWorkerHealth(std::vector<bool>* healthy) const {
  bool all_well = true;
  for (size_t i = 0; i < engine_->num_workers(); ++i) {
    const absl::Status health = engine_->WorkerHealth(i);
    all_well = all_well && health.ok();
    if (health.ok() == (*healthy)[i]) {
      continue;
    }
    (*healthy)[i] = health.ok();
    if (health.ok()) {
      logger_->Log(LogLevel::kInfo, "worker_recovered", {{"worker", i}});
    } else {
      logger_->Log(LogLevel::kError, "worker_unhealthy",
                   {{"worker", i}, {"message", health.message()}});
    }
  }
  return all_well;
}

int32_t Server::Drain(const std::function<bool()>& hurry) {
  {
    MutexLock lock(&mutex_);
    draining_ = true;
    SetHealth(kReadiness, false);
    changed_.NotifyAll();
  }
  control_->MarkDraining();
  const auto wait_until = [&](Clock::time_point limit, const std::function<bool()>& done) {
    while (!done() && !hurry() && Clock::now() < limit) {
      std::this_thread::sleep_for(kDrainPoll);
    }
  };
  const auto seconds = [](double value) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(value));
  };
  wait_until(Clock::now() + seconds(config_.server.drain_grace_seconds), [] { return false; });
  engine_->CloseAdmission();
  wait_until(Clock::now() + seconds(config_.server.drain_timeout_seconds),
             [this] { return inference_->active_calls() == 0; });
  const int32_t left = inference_->active_calls();
  Shutdown(kShortCalls);
  return left;
}

void Server::Shutdown(std::chrono::milliseconds patience) {
  if (grpc_ != nullptr && !std::exchange(shut_down_, true)) {
    grpc_->Shutdown(std::chrono::system_clock::now() + patience);
  }
}

}  // namespace ferrite

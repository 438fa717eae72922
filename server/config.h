// What the server is told: a YAML file, overridden by flags. config/server.yaml explains each key.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/command_line.h"

namespace ferrite {

// One replica of the model, run by one worker thread.
struct WorkerConfig {
  std::vector<int32_t> devices = {0};
  bool operator==(const WorkerConfig&) const = default;
};

// The initialisers are the defaults; config_keys.cc has each key's bounds and meaning.
struct ServerConfig {
  struct Server {
    std::string listen = "0.0.0.0:50051";
    int32_t max_message_bytes = 4 << 20;
    bool reflection = true;
    double drain_grace_seconds = 2;
    double drain_timeout_seconds = 30;
    double stuck_step_seconds = 60;
    double stuck_grace_seconds = 30;
    double slow_reader_seconds = 60;
    std::string unix_socket_mode = "0600";
    bool orca = false;
    bool operator==(const Server&) const = default;
  } server;

  struct Connections {
    double keepalive_seconds = 60;
    double keepalive_timeout_seconds = 20;
    double min_ping_seconds = 10;
    double max_idle_seconds = 0;
    double max_age_seconds = 0;
    double max_age_grace_seconds = 0;
    int32_t max_streams = 0;
    bool operator==(const Connections&) const = default;
  } connections;

  struct Tls {
    std::string certificate;  // empty: plain text
    std::string key;
    std::string client_ca;
    std::string client_certificates = "none";
    double reload_seconds = 10;
    bool enabled() const { return !certificate.empty(); }
    bool operator==(const Tls&) const = default;
  } tls;

  struct Auth {
    std::string token_file;  // empty: everybody may call
    double reload_seconds = 10;
    bool operator==(const Auth&) const = default;
  } auth;

  struct Limits {
    int32_t max_prompt_tokens = 0;
    int32_t max_new_tokens = 0;
    int32_t max_requests_per_client = 0;
    bool operator==(const Limits&) const = default;
  } limits;

  struct Model {
    std::string path = "models/stories260k";  // relative to the working directory
    std::string name;
    // `name`, or the last folder name of `path` if `name` is empty.
    std::string served_name() const;
    bool operator==(const Model&) const = default;
  } model;

  struct Backend {
    std::string type = "cpu";
    std::string compute_type = "auto";
    int32_t threads = 0;
    double gpu_memory_fraction = 0.9;
    bool deterministic = false;
    bool operator==(const Backend&) const = default;
  } backend;

  std::vector<WorkerConfig> workers = {WorkerConfig{}};  // never empty

  struct Scheduler {
    int32_t max_running = 64;
    int32_t max_step_tokens = 512;
    int32_t mixed_step_tokens = 0;
    int32_t max_context = 0;
    int32_t max_waiting = 256;
    int64_t max_waiting_tokens = 1'000'000;
    bool refuse_late = false;
    double aging_seconds = 30;
    bool operator==(const Scheduler&) const = default;
  } scheduler;

  struct KvCache {
    int32_t block_size = 16;
    int32_t blocks = 0;
    int64_t memory_mb = 256;
    bool prefix_caching = true;
    bool operator==(const KvCache&) const = default;
  } kv_cache;

  struct Defaults {
    double temperature = 1.0;
    int32_t top_k = 0;
    double top_p = 1.0;
    double min_p = 0.0;
    int32_t max_new_tokens = 0;
    bool operator==(const Defaults&) const = default;
  } defaults;

  struct Metrics {
    std::string listen;  // empty: off
    bool operator==(const Metrics&) const = default;
  } metrics;

  struct Log {
    std::string format = "text";
    std::string level = "info";
    bool access = true;
    bool operator==(const Log&) const = default;
  } log;

  bool operator==(const ServerConfig&) const = default;
};

// Defaults, then the file of --config, then the flags. InvalidArgument lists every problem found,
// one a line, each with its file and line (or "command line"), key, value and bound; NotFound if
// the file cannot be read.
absl::StatusOr<ServerConfig> LoadConfig(const CommandLine& command_line);

// `config` as YAML that LoadConfig reads back to an equal one, with every key explained.
std::string PrintConfig(const ServerConfig& config);

}  // namespace ferrite

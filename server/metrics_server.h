// The port that Prometheus scrapes.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "server/call_log.h"
#include "server/served_model.h"
#include "server/write_watch.h"

namespace prometheus {
class Exposer;
class Collectable;
}  // namespace prometheus

namespace ferrite {

// Who knows the values.
struct MetricsSources {
  const ServedModel* model;
  const Engine* engine;
  const CallLog* call_log;
  const WriteWatch* write_watch;
};

// Serves /metrics in Prometheus' text format until it is destroyed. Values are collected when they
// are asked for; nothing is done in between. Thread-safe.
class MetricsServer {
 public:
  // `address` is host:port, as metrics.listen. Unavailable, naming it, if the server cannot listen
  // there. What `sources` point to must outlive it.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Create(const std::string& address,
                                                               const MetricsSources& sources);
  ~MetricsServer();

  int port() const { return port_; }

 private:
  MetricsServer() = default;

  std::shared_ptr<prometheus::Collectable> collector_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  int port_ = 0;
};

}  // namespace ferrite

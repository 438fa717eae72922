// The port that Prometheus scrapes.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "server/call_log.h"
#include "server/served_model.h"
#include "server/text_page.h"
#include "server/write_watch.h"

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
  // `address` is metrics.listen. InvalidArgument or Unavailable, naming it, if the server cannot
  // listen there. What `sources` point to must outlive it.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Create(const std::string& address,
                                                               const MetricsSources& sources);

  int port() const { return page_->port(); }

 private:
  explicit MetricsServer(std::unique_ptr<TextPage> page) : page_(std::move(page)) {}

  std::unique_ptr<TextPage> page_;
};

}  // namespace ferrite

// The server's load in the trailers of a call, for clients that balance by it.
#pragma once

#include <grpcpp/grpcpp.h>

#include <span>
#include <string_view>

#include "engine/clock.h"
#include "engine/engine.h"
#include "engine/mutex.h"
#include "xds/data/orca/v3/orca_load_report.pb.h"

namespace ferrite {

// Events a second: each counts with a weight that falls to 1/e in ten seconds. Thread-compatible.
class EventRate {
 public:
  void Add(Clock::time_point now);
  double PerSecond(Clock::time_point now) const;

 private:
  double weight_ = 0;
  Clock::time_point last_;
};

// Sums over the workers that have not failed; a utilization of 1 is max_running requests on each,
// or a full KV cache, whichever is nearer, and what waits goes above it.
xds::data::orca::v3::OrcaLoadReport MakeLoadReport(std::span<const WorkerLoad> workers,
                                                   int32_t max_running, double calls_per_second);

// Whether `value`, of the metadata endpoint-load-metrics-format, asks for what can be given: "bin"
// in any case. Other servers take "json" and "text", too, as headers; gRPC has only the trailer.
bool AsksForLoadReport(std::string_view value);

// Adds an ORCA report to the trailers (endpoint-load-metrics-bin), as gRPC's proposal A51 has it.
// There, clients do not ask and the server decides; here a client may ask. Thread-safe.
class LoadReporter {
 public:
  // To every call if `always`, else where the client asks. `engine` must outlive it.
  LoadReporter(const Engine* engine, bool always) : engine_(engine), always_(always) {}

  // To be called once for each request, before its call is finished. What was refused or failed is
  // no load: balancers would send more to who refuses fast.
  void OnCallEnding(bool served, grpc::ServerContextBase* call);

 private:
  const Engine* const engine_;
  const bool always_;
  Mutex mutex_;
  EventRate calls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ferrite

#include "server/load_report.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/match.h"

namespace ferrite {
namespace {

constexpr double kMemorySeconds = 10;
constexpr char kAsks[] = "endpoint-load-metrics-format";
constexpr char kTrailer[] = "endpoint-load-metrics-bin";

double Decay(Clock::time_point from, Clock::time_point to) {
  return std::exp(-std::max(0.0, SecondsBetween(from, to)) / kMemorySeconds);
}

}  // namespace

void EventRate::Add(Clock::time_point now) {
  weight_ = weight_ * Decay(last_, now) + 1;
  last_ = now;
}

double EventRate::PerSecond(Clock::time_point now) const {
  return weight_ * Decay(last_, now) / kMemorySeconds;
}

xds::data::orca::v3::OrcaLoadReport MakeLoadReport(std::span<const WorkerLoad> workers,
                                                   int32_t max_running, double calls_per_second) {
  double running = 0, waiting = 0, free_blocks = 0, blocks = 0, slots = 0;
  for (const WorkerLoad& worker : workers) {
    if (worker.failed) continue;
    slots += max_running;
    running += worker.requests_running;
    waiting += worker.requests_waiting;
    free_blocks += worker.kv_blocks_free;
    blocks += worker.kv_blocks_total;
  }
  const double cache = blocks == 0 ? 0 : 1 - free_blocks / blocks;
  xds::data::orca::v3::OrcaLoadReport report;
  report.set_rps_fractional(calls_per_second);
  report.set_application_utilization(slots == 0 ? 1 : std::max((running + waiting) / slots, cache));
  (*report.mutable_utilization())["kv_cache"] = cache;
  (*report.mutable_named_metrics())["kv_cache_usage_ratio"] = cache;
  (*report.mutable_named_metrics())["requests_running"] = running;
  (*report.mutable_named_metrics())["requests_waiting"] = waiting;
  return report;
}

bool AsksForLoadReport(std::string_view value) {
  return absl::EqualsIgnoreCase(absl::string_view(value.data(), value.size()), "bin");
}

void LoadReporter::OnCallEnding(bool served, grpc::ServerContextBase* call) {
  double per_second = 0;
  {
    const Clock::time_point now = Clock::now();
    MutexLock lock(&mutex_);
    if (served) {
      calls_.Add(now);
    }
    per_second = calls_.PerSecond(now);
  }
  bool wanted = always_;
  const auto [first, last] = call->client_metadata().equal_range(kAsks);
  for (auto entry = first; entry != last && !wanted; ++entry) {
    wanted = AsksForLoadReport({entry->second.data(), entry->second.size()});
  }
  if (!wanted) return;
  call->AddTrailingMetadata(
      kTrailer,
      MakeLoadReport(engine_->load(), engine_->options().scheduler.max_running, per_second)
          .SerializeAsString());
}

}  // namespace ferrite

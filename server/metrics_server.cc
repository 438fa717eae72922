#include "server/metrics_server.h"

#include <grpcpp/support/status.h>
#include <prometheus/text_serializer.h>

#include <chrono>
#include <sstream>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/metric_families.h"

namespace ferrite {
namespace {

// Statuses that alerts look for: a series that begins with its first call at 1 has no rate, so
// these begin at 0. Others are not worth a series until they come.
bool IsFault(size_t code) {
  return code == grpc::StatusCode::UNKNOWN || code == grpc::StatusCode::INTERNAL ||
         code == grpc::StatusCode::UNAVAILABLE || code == grpc::StatusCode::DATA_LOSS;
}

// Thread-safe.
class Collector {
 public:
  explicit Collector(const MetricsSources& sources)
      : sources_(sources),
        model_(sources.model->name),
        start_seconds_(
            std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
                .count()) {}

  std::vector<prometheus::MetricFamily> Collect() const {
    MetricFamilies families;
    families.Add("ferrite_build_info", {FERRITE_VERSION, "g++ " __VERSION__}, 1);
    families.Add("ferrite_start_time_seconds", {}, start_seconds_);
    AddCalls(&families);
    const std::vector<WorkerLoad> loads = sources_.engine->load();
    for (size_t i = 0; i < loads.size(); ++i) {
      AddLoad(i, loads[i], &families);
      AddStats(i, sources_.engine->worker_stats(i), &families);
    }
    return families.Take();
  }

 private:
  void AddCalls(MetricFamilies* families) const {
    const CallLog& log = *sources_.call_log;
    for (size_t rpc = 0; rpc < kRpcNames.size(); ++rpc) {
      for (size_t code = 0; code < kCodeNames.size(); ++code) {
        const uint64_t calls = log.num_calls(static_cast<Rpc>(rpc), code);
        if (calls > 0 || IsFault(code) || code == grpc::StatusCode::OK) {
          families->Add("ferrite_requests_total", {model_, kRpcNames[rpc], kCodeNames[code]},
                        static_cast<double>(calls));
        }
      }
    }
    for (size_t reason = 1; reason < kRefusalNames.size(); ++reason) {
      families->Add("ferrite_admission_rejected_total", {model_, kRefusalNames[reason]},
                    static_cast<double>(log.num_refused(static_cast<Refusal>(reason))));
    }
    families->Add("ferrite_slow_readers_total", {model_},
                  static_cast<double>(sources_.write_watch->num_cancelled()));
  }

  void AddLoad(size_t index, const WorkerLoad& load, MetricFamilies* families) const {
    const std::string worker = absl::StrCat(index);
    const BackendInfo& info = sources_.engine->worker_info(index);
    const auto add = [&](std::string_view name, double value) {
      families->Add(name, {model_, worker}, value);
    };
    add("ferrite_requests_running", load.requests_running);
    add("ferrite_requests_waiting", load.requests_waiting);
    const int32_t used = load.kv_blocks_total - load.kv_blocks_free;
    add("ferrite_kv_cache_usage_ratio",
        load.kv_blocks_total == 0 ? 0 : static_cast<double>(used) / load.kv_blocks_total);
    add("ferrite_kv_cache_blocks", load.kv_blocks_total);
    add("ferrite_worker_heartbeat_age_seconds", load.step_age_seconds);
    add("ferrite_worker_healthy", sources_.engine->WorkerHealth(index).ok() ? 1 : 0);
    add("ferrite_preemptions_total", static_cast<double>(load.preemptions));
    for (const MemoryUse& use : info.device_memory) {
      families->Add("ferrite_gpu_memory_bytes", {model_, worker, use.kind},
                    static_cast<double>(use.bytes));
    }
    families->Add(
        "ferrite_model_info",
        {model_, worker, sources_.model->config.architecture, info.device, info.compute_type}, 1);
  }

  void AddStats(size_t index, const WorkerStats& stats, MetricFamilies* families) const {
    const std::string worker = absl::StrCat(index);
    const auto count = [&](std::string_view name, const SingleWriter<uint64_t>& counter) {
      families->Add(name, {model_, worker}, static_cast<double>(counter.value()));
    };
    const auto histogram = [&](std::string_view name, const Histogram& values) {
      families->Add(name, {model_, worker}, values);
    };
    for (size_t reason = 0; reason < kRequestEndNames.size(); ++reason) {
      families->Add("ferrite_requests_finished_total", {model_, worker, kRequestEndNames[reason]},
                    static_cast<double>(stats.finished[reason].value()));
    }
    count("ferrite_prompt_tokens_total", stats.prompt_tokens);
    count("ferrite_generation_tokens_total", stats.generation_tokens);
    count("ferrite_prefix_cache_queried_tokens_total", stats.prefix_queried_tokens);
    count("ferrite_prefix_cache_hit_tokens_total", stats.prefix_hit_tokens);
    families->Add("ferrite_steps_total", {model_, worker, "graph"},
                  static_cast<double>(stats.graph_steps.value()));
    families->Add("ferrite_steps_total", {model_, worker, "eager"},
                  static_cast<double>(stats.eager_steps.value()));
    histogram("ferrite_time_to_first_token_seconds", stats.first_token_seconds);
    histogram("ferrite_inter_token_latency_seconds", stats.token_gap_seconds);
    histogram("ferrite_request_queue_seconds", stats.queue_seconds);
    histogram("ferrite_request_duration_seconds", stats.request_seconds);
    histogram("ferrite_step_tokens", stats.step_tokens);
    histogram("ferrite_request_prompt_tokens", stats.request_prompt_tokens);
    histogram("ferrite_request_generation_tokens", stats.request_generation_tokens);
    for (size_t phase = 0; phase < kStepPhaseNames.size(); ++phase) {
      families->Add("ferrite_step_duration_seconds", {model_, worker, kStepPhaseNames[phase]},
                    stats.step_seconds[phase]);
    }
  }

  const MetricsSources sources_;
  const std::string model_;
  const double start_seconds_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Create(
    const std::string& address, const MetricsSources& sources) {
  const auto collector = std::make_shared<const Collector>(sources);
  auto page =
      TextPage::Serve(address, "/metrics", "text/plain; version=0.0.4; charset=utf-8", [collector] {
        std::ostringstream text;
        prometheus::TextSerializer().Serialize(text, collector->Collect());
        return text.str();
      });
  if (!page.ok()) {
    return absl::Status(page.status().code(), absl::StrCat("metrics.listen is '", address,
                                                           "'; the server cannot listen there: ",
                                                           std::string(page.status().message())));
  }
  return std::unique_ptr<MetricsServer>(new MetricsServer(*std::move(page)));
}

}  // namespace ferrite

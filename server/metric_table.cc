#include "server/metric_table.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "engine/worker_stats.h"

namespace ferrite {
namespace {

constexpr char kWorker[] = "model, worker";

constexpr Metric kMetrics[] = {
    {"ferrite_requests_running", MetricType::kGauge, "", kWorker,
     "Requests that are in the steps of the worker."},
    {"ferrite_requests_waiting", MetricType::kGauge, "", kWorker,
     "Requests that wait for their first step."},
    {"ferrite_kv_cache_usage_ratio", MetricType::kGauge, "ratio", kWorker,
     "Share of the KV cache's blocks that is in use, 0 to 1."},
    {"ferrite_kv_cache_blocks", MetricType::kGauge, "", kWorker, "Blocks of the KV cache."},
    {"ferrite_gpu_memory_bytes", MetricType::kGauge, "bytes", "model, worker, kind",
     "GPU memory that the worker set aside at its start, by use: weights, workspace, activations, "
     "graphs, kv_cache. Only where there is a GPU."},
    {"ferrite_worker_heartbeat_age_seconds", MetricType::kGauge, "seconds", kWorker,
     "Time since the worker's present step made progress; 0 while it is idle."},
    {"ferrite_worker_healthy", MetricType::kGauge, "", kWorker,
     "1, or 0 once the worker has failed or its step is stuck."},
    {"ferrite_model_info", MetricType::kGauge, "",
     "model, worker, architecture, device, compute_type", "1: what each worker serves."},
    {"ferrite_build_info", MetricType::kGauge, "", "version, compiler", "1: what was built."},
    {"ferrite_start_time_seconds", MetricType::kGauge, "seconds", "",
     "When the server became ready, in Unix time: it changes with a restart."},

    {"ferrite_requests_total", MetricType::kCounter, "", "model, rpc, code",
     "Calls that have ended, by gRPC status. Those whose client's deadline passed are "
     "DEADLINE_EXCEEDED, also where the server only saw the client leave."},
    {"ferrite_requests_finished_total", MetricType::kCounter, "", "model, worker, reason",
     "Requests of a worker that have ended: stop, length, aborted, embedded, cancelled, deadline "
     "(found by the worker), failed. Each sample and each embedding input is one."},
    {"ferrite_admission_rejected_total", MetricType::kCounter, "", "model, reason",
     "Calls refused before any work: queue_requests, queue_tokens (the queue's two bounds), late "
     "(scheduler.refuse_late), client_limit, draining, unhealthy (no worker can serve)."},
    {"ferrite_prompt_tokens_total", MetricType::kCounter, "tokens", kWorker,
     "Tokens of prompts that have begun to be computed; those of one prompt's samples once."},
    {"ferrite_generation_tokens_total", MetricType::kCounter, "tokens", kWorker,
     "Tokens generated and handed out."},
    {"ferrite_prefix_cache_queried_tokens_total", MetricType::kCounter, "tokens", kWorker,
     "Prompt tokens looked up in the prefix cache."},
    {"ferrite_prefix_cache_hit_tokens_total", MetricType::kCounter, "tokens", kWorker,
     "Those that were found there."},
    {"ferrite_preemptions_total", MetricType::kCounter, "", kWorker,
     "Requests that gave up their blocks to older ones and were computed again."},
    {"ferrite_steps_total", MetricType::kCounter, "", "model, worker, mode",
     "Steps: graph (replayed) or eager."},
    {"ferrite_slow_readers_total", MetricType::kCounter, "", "model",
     "Calls cancelled because their client left a message unread (server.slow_reader_seconds)."},

    {"ferrite_time_to_first_token_seconds", MetricType::kHistogram, "seconds", kWorker,
     "From a request's arrival to its first token.", kLatencyBounds},
    {"ferrite_inter_token_latency_seconds", MetricType::kHistogram, "seconds", kWorker,
     "Between two tokens of a request.", kTokenGapBounds},
    {"ferrite_request_queue_seconds", MetricType::kHistogram, "seconds", kWorker,
     "From a request's arrival to its first step, or to its end if it had none.", kLatencyBounds},
    {"ferrite_request_duration_seconds", MetricType::kHistogram, "seconds", kWorker,
     "From a request's arrival to its end in the worker.", kDurationBounds},
    {"ferrite_step_duration_seconds", MetricType::kHistogram, "seconds", "model, worker, phase",
     "What a step keeps the device for: decode (one token a sequence), prefill (prompts alone) or "
     "mixed.",
     kStepBounds},
    {"ferrite_step_tokens", MetricType::kHistogram, "tokens", kWorker, "Tokens computed in a step.",
     kTokenBounds},
    {"ferrite_request_prompt_tokens", MetricType::kHistogram, "tokens", kWorker,
     "Length of the prompts counted by ferrite_prompt_tokens_total.", kTokenBounds},
    {"ferrite_request_generation_tokens", MetricType::kHistogram, "tokens", kWorker,
     "Tokens that a request, or one of its samples, had generated when it ended.", kTokenBounds},
};

const char* TypeName(MetricType type) {
  switch (type) {
    case MetricType::kCounter:
      return "counter";
    case MetricType::kGauge:
      return "gauge";
    case MetricType::kHistogram:
      return "histogram";
  }
  return "";
}

std::vector<std::string> Labels(const Metric& metric) {
  return absl::StrSplit(metric.labels, ", ", absl::SkipEmpty());
}

constexpr char kIntroduction[] =
    R"(# Metrics

Prometheus reads them at `http://HOST:PORT/metrics`, where HOST:PORT is `metrics.listen`, which is
empty, and nothing there, unless it is configured. `server/metric_table.cc` is the source of this
page: `metric_docs > docs/metrics.md` writes it anew.

`model` is the name that the server serves, `worker` the worker's index. A request is what a worker
runs: each sample of a Generate call, each input of an Embed call; `ferrite_requests_total` counts
calls. Calls that gRPC refuses itself (no such method, a message above `server.max_message_bytes`)
reach no handler and are not counted. A call is counted before its client learns that it has ended;
the worker's own figures are at most a step behind.

| metric | type | unit | labels | meaning |
|---|---|---|---|---|
)";

}  // namespace

std::span<const Metric> MetricTable() { return kMetrics; }

const Metric* FindMetric(std::string_view name) {
  for (const Metric& metric : kMetrics) {
    if (name == metric.name) {
      return &metric;
    }
  }
  return nullptr;
}

std::string MetricDocs() {
  std::string docs = kIntroduction;
  for (const Metric& metric : kMetrics) {
    absl::StrAppend(&docs, "| `", metric.name, "` | ", TypeName(metric.type), " | ", metric.unit,
                    " | ", metric.labels, " | ", metric.help, " |\n");
  }
  absl::StrAppend(&docs, "\n## Buckets\n\nUpper bounds; the last bucket is everything.\n\n");
  for (const Metric& metric : kMetrics) {
    if (metric.type == MetricType::kHistogram) {
      absl::StrAppend(&docs, "- `", metric.name, "`: ", absl::StrJoin(metric.bounds, ", "), "\n");
    }
  }
  return docs;
}

std::string MetricJson() {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Metric& metric : kMetrics) {
    list.push_back({{"name", metric.name},
                    {"type", TypeName(metric.type)},
                    {"unit", metric.unit},
                    {"labels", Labels(metric)},
                    {"help", metric.help},
                    {"buckets", metric.bounds}});
  }
  return list.dump(2) + "\n";
}

}  // namespace ferrite

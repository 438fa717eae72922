#include "client/bench_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/exit_code.h"
#include "client/progress.h"
#include "client/statistics.h"

namespace ferrite {
namespace {

using Json = nlohmann::ordered_json;

struct Times {
  const char* name;   // for people
  const char* field;  // in JSON
  Summary summary;    // seconds
};

std::vector<Times> Summaries(const LoadResult& load) {
  return {{"time to first token", "time_to_first_token_ms", Summarize(load.first_token)},
          {"inter-token", "inter_token_ms", Summarize(load.inter_token)},
          {"message gap", "message_gap_ms", Summarize(load.message_gaps)},
          {"end to end", "end_to_end_ms", Summarize(load.end_to_end)}};
}

double Per(double amount, double of) { return of > 0 ? amount / of : 0; }

double CpuSeconds(const LoadResult& load) { return load.user_seconds + load.system_seconds; }

double TokensPerMessage(const LoadResult& load) {
  return Per(static_cast<double>(load.output_tokens), static_cast<double>(load.token_messages));
}

// In JSON a statistic of no samples is null, not 0.
Json InMilliseconds(const Summary& summary) {
  const auto value = [&summary](double seconds) {
    return summary.count > 0 ? Json(seconds * 1e3) : Json();
  };
  return {{"count", summary.count},    {"mean", value(summary.mean)}, {"min", value(summary.min)},
          {"p50", value(summary.p50)}, {"p90", value(summary.p90)},   {"p95", value(summary.p95)},
          {"p99", value(summary.p99)}, {"max", value(summary.max)}};
}

Json Settings(const BenchReport& report) {
  const BenchOptions& options = report.options;
  const BenchWorkload& workload = options.workload;
  const std::optional<double>& timeout = report.connection.timeout_seconds;
  return {{"server", report.connection.server},
          {"timeout_seconds", timeout ? Json(*timeout) : Json()},
          {"model", workload.model ? Json(*workload.model) : Json()},
          {"concurrency", options.concurrency},
          {"prompt_tokens", workload.prompt_tokens},
          {"output_tokens", workload.output_tokens},
          {"count", options.count},
          {"warm_up", options.warm_up},
          {"seed", workload.seed},
          {"temperature", workload.temperature},
          {"check", options.check},
          {"threads", options.threads}};
}

Json Server(const BenchReport& report) {
  Json workers = Json::array();
  for (const v1::WorkerInfo& worker : report.server.workers()) {
    workers.push_back({{"device", worker.device()},
                       {"compute_type", worker.compute_type()},
                       {"kv_blocks", worker.kv_blocks()},
                       {"kv_block_size", worker.kv_block_size()},
                       {"max_running", worker.max_running()},
                       {"max_step_tokens", worker.max_step_tokens()}});
  }
  return {{"version", report.server.version()},
          {"model", report.model.name()},
          {"num_parameters", report.model.num_parameters()},
          {"workers", workers}};
}

Json Requests(const LoadResult& load) {
  Json errors = Json::array();
  for (const auto& [code, failures] : load.failures) {
    errors.push_back({{"status", StatusCodeName(code)},
                      {"count", failures.count},
                      {"message", failures.message}});
  }
  return {{"completed", load.completed},
          {"failed", load.failed()},
          {"cut_short", load.cut_short},
          {"errors", errors}};
}

void PrintHead(const BenchReport& report, std::ostream& out) {
  const BenchOptions& options = report.options;
  const BenchWorkload& workload = options.workload;
  out << "model        " << report.model.name();
  for (const v1::WorkerInfo& worker : report.server.workers()) {
    out << ", " << worker.device() << " " << worker.compute_type();
  }
  out << absl::StrFormat(
      "\nsettings     %d requests of %d + %d tokens, %d at a time, temperature %g, seed %d\n",
      options.count, workload.prompt_tokens, workload.output_tokens, options.concurrency,
      workload.temperature, workload.seed);
}

void PrintRates(const LoadResult& load, std::ostream& out) {
  const auto per_second = [&load](int64_t amount) {
    return Per(static_cast<double>(amount), load.seconds);
  };
  out << absl::StrFormat("requests     %d completed in %.3f s (%.2f/s), %d failed", load.completed,
                         load.seconds, per_second(load.completed), load.failed());
  if (load.cut_short > 0) out << ", " << load.cut_short << " cut short";
  out << absl::StrFormat(
      "\ninput        %d tokens (%.1f/s)\noutput       %d tokens (%.1f/s), %.2f a message\n",
      load.input_tokens, per_second(load.input_tokens), load.output_tokens,
      per_second(load.output_tokens), TokensPerMessage(load));
  for (const auto& [code, failures] : load.failures) {
    out << absl::StrFormat("error        %s %d times: %s\n", std::string(StatusCodeName(code)),
                           failures.count, failures.message);
  }
}

void PrintTimes(const LoadResult& load, std::ostream& out) {
  out << absl::StrFormat("\n%-20s %9s %9s %9s %9s %9s %9s\n", "ms", "mean", "p50", "p90", "p95",
                         "p99", "max");
  for (const Times& times : Summaries(load)) {
    out << absl::StrFormat("%-20s", times.name);
    const Summary& all = times.summary;
    for (const double seconds : {all.mean, all.p50, all.p90, all.p95, all.p99, all.max}) {
      out << (all.count > 0 ? absl::StrFormat(" %9.3f", seconds * 1e3)
                            : absl::StrFormat(" %9s", "-"));
    }
    out << "\n";
  }
}

}  // namespace

Json ToJson(const BenchReport& report) {
  const LoadResult& load = report.load;
  Json json = {
      {"settings", Settings(report)},
      {"server", Server(report)},
      {"interrupted", report.interrupted},
      {"requests", Requests(load)},
      {"duration_seconds", load.seconds},
      {"input_tokens", load.input_tokens},
      {"cached_tokens", load.cached_tokens},
      {"output_tokens", load.output_tokens},
      {"tokens_per_message", TokensPerMessage(load)},
      {"requests_per_second", Per(static_cast<double>(load.completed), load.seconds)},
      {"input_tokens_per_second", Per(static_cast<double>(load.input_tokens), load.seconds)},
      {"output_tokens_per_second", Per(static_cast<double>(load.output_tokens), load.seconds)},
  };
  for (const Times& times : Summaries(load)) json[times.field] = InMilliseconds(times.summary);
  json["check"] = {{"compared", report.compared},
                   {"different_from_solo", report.different_from_solo}};
  json["client"] = {{"user_seconds", load.user_seconds},
                    {"system_seconds", load.system_seconds},
                    {"cores", Per(CpuSeconds(load), load.seconds)}};
  return json;
}

void PrintTable(const BenchReport& report, std::ostream& out) {
  const LoadResult& load = report.load;
  PrintHead(report, out);
  if (report.interrupted) out << "interrupted  the figures are those until then\n";
  PrintRates(load, out);
  PrintTimes(load, out);
  if (report.options.check > 0) {
    out << absl::StrFormat("\ncheck        %d of %d requests gave other tokens than alone",
                           report.different_from_solo, report.compared);
  }
  const double cores = Per(CpuSeconds(load), load.seconds);
  out << absl::StrFormat("\nclient       %.3f s of CPU time, %.2f cores\n", CpuSeconds(load),
                         cores);
  if (cores > 0.7 * std::min(report.options.threads, report.options.concurrency)) {
    out << "             That is nearly all that its threads have, so times may be the client's "
           "own:\n             try more --threads.\n";
  }
}

std::string ProgressLine(const std::string& phase, const LoadProgress& progress, int64_t count) {
  return absl::StrFormat("%s  %.1f s  %.0f tokens/s", ProgressText(phase, progress.ended, count),
                         progress.seconds,
                         Per(static_cast<double>(progress.output_tokens), progress.seconds));
}

}  // namespace ferrite

#include "client/bench_report.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/exit_code.h"
#include "client/progress.h"
#include "client/statistics.h"

namespace ferrite {
namespace {

using Json = nlohmann::ordered_json;

struct NamedTimes {
  const char* name;   // for people
  const char* field;  // in JSON
  Summary summary;    // seconds
};

std::vector<NamedTimes> Summaries(const LoadResult& load) {
  return {{"time to first token", "time_to_first_token_ms", Summarize(load.first_token)},
          {"inter-token", "inter_token_ms", Summarize(load.inter_token)},
          {"message gap", "message_gap_ms", Summarize(load.message_gaps)},
          {"end to end", "end_to_end_ms", Summarize(EndToEnd(load))}};
}

double Per(double amount, double of) { return of > 0 ? amount / of : 0; }

double CpuSeconds(const LoadResult& load) { return load.user_seconds + load.system_seconds; }

double TokensPerMessage(const LoadResult& load) {
  return Per(static_cast<double>(load.output_tokens), static_cast<double>(load.token_messages));
}

std::vector<double> TokenRates(const LoadResult& load) {
  std::vector<double> rates;
  for (const LoadTimes& times : load.times) {
    rates.push_back(Per(static_cast<double>(times.output_tokens), times.end_to_end));
  }
  return rates;
}

// In JSON a statistic of no samples is null, not 0.
Json Statistics(const Summary& summary, double scale) {
  const auto value = [&summary, scale](double sample) {
    return summary.count > 0 ? Json(sample * scale) : Json();
  };
  return {{"count", summary.count},    {"mean", value(summary.mean)}, {"min", value(summary.min)},
          {"p50", value(summary.p50)}, {"p90", value(summary.p90)},   {"p95", value(summary.p95)},
          {"p99", value(summary.p99)}, {"max", value(summary.max)}};
}

Json InMilliseconds(const Summary& summary) { return Statistics(summary, 1e3); }

template <typename T>
Json OrNull(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

Json Length(const TokenRange& range) {
  return range.least == range.most ? Json(range.least) : Json(ToString(range));
}

// Milliseconds.
Json ToJson(const Objective& objective) {
  const auto limit = [](const std::optional<double>& seconds) {
    return seconds ? Json(*seconds * 1e3) : Json();
  };
  return {{"ttft_ms", limit(objective.first_token)},
          {"itl_ms", limit(objective.inter_token)},
          {"e2e_ms", limit(objective.end_to_end)}};
}

Json Settings(const BenchReport& report) {
  const BenchOptions& options = report.options;
  const BenchWorkload& workload = options.workload;
  const bool from_file = !workload.dataset.empty();
  return {{"server", report.connection.server},
          {"timeout_seconds", OrNull(report.connection.timeout_seconds)},
          {"model", OrNull(workload.model)},
          {"concurrency", options.rate ? Json() : Json(options.concurrency)},
          {"rate", OrNull(options.rate)},
          {"prompt_tokens", from_file ? Json() : Length(workload.prompt_tokens)},
          {"output_tokens", from_file ? Json() : Length(workload.output_tokens)},
          {"dataset", from_file ? Json(workload.dataset) : Json()},
          {"shared_prefix_tokens", workload.shared_prefix_tokens},
          {"prefixes", workload.prefixes},
          {"turns", workload.turns},
          {"count", options.count < kMostBenchRequests ? Json(options.count) : Json()},
          {"duration_seconds", OrNull(options.duration)},
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
                       {"max_step_tokens", worker.max_step_tokens()},
                       {"mixed_step_tokens", worker.mixed_step_tokens()}});
  }
  return {{"version", report.server.version()},
          {"deterministic", report.server.deterministic()},
          {"fingerprint", report.server.fingerprint()},
          {"model", report.model.name()},
          {"num_parameters", report.model.num_parameters()},
          {"workers", workers}};
}

Json Requests(const LoadResult& load) {
  Json errors = Json::array();
  for (const auto& [code, failures] : load.failures) {
    errors.push_back({{"status", StatusCodeName(code)},
                      {"count", failures.count},
                      {"message", failures.message},
                      {"end_to_end_ms", InMilliseconds(Summarize(failures.seconds))}});
  }
  return {{"started", load.started},
          {"completed", load.completed},
          {"failed", load.failed()},
          {"cut_short", load.cut_short},
          {"errors", errors}};
}

Json Goodput(const BenchReport& report) {
  if (!report.options.goodput) return Json();
  const LoadResult& load = report.load;
  const auto good = static_cast<double>(NumGood(report));
  return {{"objective", ToJson(*report.options.goodput)},
          {"requests", NumGood(report)},
          {"per_second", Per(good, load.seconds)},
          {"fraction", Per(good, static_cast<double>(load.completed + load.failed()))}};
}

Json Check(const BenchReport& report) {
  Json differences = Json::array();
  for (const BenchCheck::Difference& difference : report.check.different) {
    differences.push_back({{"request", difference.index}, {"first_other_token", difference.place}});
  }
  const grpc::Status& failure = report.check.failure;
  return {{"compared", report.check.compared},
          {"different_from_solo", report.check.different.size()},
          {"differences", differences},
          {"failure", failure.ok() ? Json() : Json(failure.error_message())}};
}

std::string Lengths(const BenchWorkload& workload) {
  std::string lengths = workload.dataset.empty()
                            ? absl::StrCat(ToString(workload.prompt_tokens), " + ",
                                           ToString(workload.output_tokens), " tokens")
                            : absl::StrCat("the lengths of ", workload.dataset);
  if (workload.shared_prefix_tokens > 0) {
    absl::StrAppend(&lengths, " after ", workload.prefixes, " shared of ",
                    workload.shared_prefix_tokens);
  }
  if (workload.turns > 1) absl::StrAppend(&lengths, " in ", workload.turns, " turns");
  return lengths;
}

void PrintHead(const BenchReport& report, std::ostream& out) {
  const BenchOptions& options = report.options;
  PrintModel(report, out);
  const std::string amount =
      options.duration ? absl::StrFormat("%g s", *options.duration) : absl::StrCat(options.count);
  const std::string load = options.rate ? absl::StrFormat("%g a second", *options.rate)
                                        : absl::StrCat(options.concurrency, " at a time");
  out << absl::StrFormat("settings     %s %s of %s, %s, temperature %g, seed %d\n", amount,
                         options.duration ? "of requests" : "requests", Lengths(options.workload),
                         load, options.workload.temperature, options.workload.seed);
}

void PrintRates(const BenchReport& report, std::ostream& out) {
  const LoadResult& load = report.load;
  const auto per_second = [&load](int64_t amount) {
    return Per(static_cast<double>(amount), load.seconds);
  };
  out << absl::StrFormat("requests     %d completed in %.3f s (%.2f/s), %d failed", load.completed,
                         load.seconds, per_second(load.completed), load.failed());
  if (load.cut_short > 0) out << ", " << load.cut_short << " cut short";
  out << absl::StrFormat(
      "\ninput        %d tokens (%.1f/s), %d of them cached\noutput       %d tokens (%.1f/s), %.2f "
      "a "
      "message\n",
      load.input_tokens, per_second(load.input_tokens), load.cached_tokens, load.output_tokens,
      per_second(load.output_tokens), TokensPerMessage(load));
  if (report.options.goodput) {
    const int64_t good = NumGood(report);
    out << absl::StrFormat("goodput      %d requests (%.2f/s)\n", good, per_second(good));
  }
  PrintFailures(report, out);
}

void PrintRow(const char* name, const Summary& all, double scale, std::ostream& out) {
  out << absl::StrFormat("%-20s", name);
  for (const double sample : {all.mean, all.p50, all.p90, all.p95, all.p99, all.max}) {
    out << (all.count > 0 ? absl::StrFormat(" %9.3f", sample * scale)
                          : absl::StrFormat(" %9s", "-"));
  }
  out << "\n";
}

void PrintTimes(const LoadResult& load, std::ostream& out) {
  out << absl::StrFormat("\n%-20s %9s %9s %9s %9s %9s %9s\n", "ms", "mean", "p50", "p90", "p95",
                         "p99", "max");
  for (const NamedTimes& times : Summaries(load)) PrintRow(times.name, times.summary, 1e3, out);
  if (!load.send_lag.empty()) PrintRow("late sending", Summarize(load.send_lag), 1e3, out);
  PrintRow("tokens/s a request", Summarize(TokenRates(load)), 1, out);
}

}  // namespace

std::vector<double> EndToEnd(const LoadResult& load) {
  std::vector<double> seconds;
  for (const LoadTimes& times : load.times) seconds.push_back(times.end_to_end);
  return seconds;
}

double OutputRate(const LoadResult& load) {
  return Per(static_cast<double>(load.output_tokens), load.seconds);
}

int64_t NumGood(const BenchReport& report) {
  const Objective& objective = *report.options.goodput;
  const auto meets = [](double seconds, const std::optional<double>& limit) {
    return !limit || seconds <= *limit;
  };
  return std::count_if(report.load.times.begin(), report.load.times.end(),
                       [&](const LoadTimes& times) {
                         return meets(times.first_token, objective.first_token) &&
                                meets(times.inter_token, objective.inter_token) &&
                                meets(times.end_to_end, objective.end_to_end);
                       });
}

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
      {"output_tokens_per_second", OutputRate(load)},
      {"goodput", Goodput(report)},
  };
  for (const NamedTimes& times : Summaries(load)) json[times.field] = InMilliseconds(times.summary);
  json["send_lag_ms"] = InMilliseconds(Summarize(load.send_lag));
  json["request_tokens_per_second"] = Statistics(Summarize(TokenRates(load)), 1);
  json["check"] = Check(report);
  json["client"] = {{"user_seconds", load.user_seconds},
                    {"system_seconds", load.system_seconds},
                    {"cores", Per(CpuSeconds(load), load.seconds)}};
  return json;
}

void PrintTable(const BenchReport& report, std::ostream& out) {
  const LoadResult& load = report.load;
  PrintHead(report, out);
  if (report.interrupted) out << "interrupted  the figures are those until then\n";
  PrintRates(report, out);
  PrintTimes(load, out);
  if (report.options.check > 0) {
    out << absl::StrFormat("\ncheck        %d of %d requests gave other tokens than alone",
                           report.check.different.size(), report.check.compared);
  }
  const double cores = Per(CpuSeconds(load), load.seconds);
  out << absl::StrFormat("\nclient       %.3f s of CPU time, %.2f cores\n", CpuSeconds(load),
                         cores);
  const int32_t streams = report.options.rate ? report.options.threads : report.options.concurrency;
  if (cores > 0.7 * std::min(report.options.threads, streams)) {
    out << "             That is nearly all that its threads have, so times may be the client's "
           "own:\n             try more --threads.\n";
  }
}

void PrintModel(const BenchReport& report, std::ostream& out) {
  out << "model        " << report.model.name();
  for (const v1::WorkerInfo& worker : report.server.workers()) {
    out << ", " << worker.device() << " " << worker.compute_type();
  }
  out << "\n";
}

void PrintFailures(const BenchReport& report, std::ostream& out) {
  for (const auto& [code, failures] : report.load.failures) {
    out << absl::StrFormat("error        %s %d times: %s\n", std::string(StatusCodeName(code)),
                           failures.count, failures.message);
  }
  for (const BenchCheck::Difference& difference : report.check.different) {
    out << absl::StrFormat(
        "wrong        request %d has another token than alone in place %d of its output\n",
        difference.index, difference.place);
  }
  const grpc::Status& failure = report.check.failure;
  if (!failure.ok()) {
    out << absl::StrFormat("unchecked    alone, a request failed with %s: %s\n",
                           std::string(StatusCodeName(failure.error_code())),
                           failure.error_message());
  }
}

std::string ProgressLine(const std::string& phase, const LoadProgress& progress, int64_t count,
                         double duration_seconds) {
  const double rate = Per(static_cast<double>(progress.output_tokens), progress.seconds);
  if (duration_seconds < std::numeric_limits<double>::infinity()) {
    const std::string bar =
        ProgressText(phase, std::lround(std::min(progress.seconds, duration_seconds)),
                     std::lround(duration_seconds));
    return absl::StrFormat("%s s  %d done  %.0f tokens/s", bar, progress.ended, rate);
  }
  return absl::StrFormat("%s  %.1f s  %.0f tokens/s", ProgressText(phase, progress.ended, count),
                         progress.seconds, rate);
}

}  // namespace ferrite

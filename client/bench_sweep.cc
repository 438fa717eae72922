#include "client/bench_sweep.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/bench_plot.h"
#include "client/statistics.h"

namespace ferrite {
namespace {

constexpr char kColumns[] = "%11s %9s %11s %9s %9s %9s %9s %9s %9s %7s %6s\n";

std::string Milliseconds(const Summary& summary, double seconds) {
  return summary.count > 0 ? absl::StrFormat("%.2f", seconds * 1e3) : "-";
}

std::string LoadOf(const BenchOptions& options) {
  return options.rate ? absl::StrFormat("%g/s", *options.rate) : absl::StrCat(options.concurrency);
}

PlotPoint Point(const BenchReport& report, const Summary& summary, double seconds) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();  // and is not drawn
  return {OutputRate(report.load), summary.count > 0 ? seconds * 1e3 : kNone,
          LoadOf(report.options)};
}

}  // namespace

void PrintSweepHead(const BenchReport& report, std::ostream& out) {
  PrintModel(report, out);
  out << absl::StrFormat(kColumns, report.options.sweep_rate.empty() ? "concurrency" : "rate",
                         "requests", "output", "TTFT p50", "TTFT p99", "inter p50", "inter p99",
                         "end p50", "goodput", "failed", "other")
      << absl::StrFormat(kColumns, "", "/s", "tokens/s", "ms", "ms", "ms", "ms", "ms", "/s", "",
                         "ids")
      << std::flush;
}

void PrintSweepRow(const BenchReport& point, std::ostream& out) {
  const LoadResult& load = point.load;
  const Summary first = Summarize(load.first_token);
  const Summary inter = Summarize(load.inter_token);
  const Summary whole = Summarize(EndToEnd(load));
  const double rate = load.seconds > 0 ? static_cast<double>(load.completed) / load.seconds : 0;
  out << absl::StrFormat(
             kColumns, LoadOf(point.options), absl::StrFormat("%.2f", rate),
             absl::StrFormat("%.1f", OutputRate(load)), Milliseconds(first, first.p50),
             Milliseconds(first, first.p99), Milliseconds(inter, inter.p50),
             Milliseconds(inter, inter.p99), Milliseconds(whole, whole.p50),
             point.options.goodput
                 ? absl::StrFormat("%.2f", static_cast<double>(NumGood(point)) / load.seconds)
                 : "-",
             absl::StrCat(load.failed()),
             absl::StrCat(point.check.different.size(), "/", point.check.compared))
      << std::flush;
  PrintFailures(point, out);
}

nlohmann::ordered_json SweepToJson(const std::vector<BenchReport>& points) {
  nlohmann::ordered_json array = nlohmann::ordered_json::array();
  for (const BenchReport& point : points) array.push_back(ToJson(point));
  return {{"sweep", array}};
}

std::string PlotOfSweep(const std::vector<BenchReport>& points) {
  PlotPanel first{"time to first token, ms", {{"p50", {}}, {"p99", {}}}};
  PlotPanel inter{"inter-token time, ms", {{"p50", {}}, {"p99", {}}}};
  for (const BenchReport& point : points) {
    const Summary of_first = Summarize(point.load.first_token);
    const Summary of_inter = Summarize(point.load.inter_token);
    first.series[0].points.push_back(Point(point, of_first, of_first.p50));
    first.series[1].points.push_back(Point(point, of_first, of_first.p99));
    inter.series[0].points.push_back(Point(point, of_inter, of_inter.p50));
    inter.series[1].points.push_back(Point(point, of_inter, of_inter.p99));
  }
  const std::string what =
      points.front().options.rate ? "requests sent a second" : "streams in flight";
  return ToSvg({absl::StrCat(points.front().model.name(), ": each point with its ", what),
                "output tokens/s",
                {first, inter}});
}

}  // namespace ferrite

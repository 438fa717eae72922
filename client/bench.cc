#include "client/bench.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/bench_dataset.h"
#include "client/bench_report.h"
#include "client/bench_requests.h"
#include "client/bench_sweep.h"
#include "client/exit_code.h"
#include "client/load.h"
#include "client/progress.h"
#include "ferrite/v1/control.grpc.pb.h"

namespace ferrite {
namespace {

constexpr std::chrono::seconds kConnectTime(5);
// Each point of a sweep, and each warm-up, has requests of its own: a prefix cache knows none of
// them from before.
constexpr int64_t kIndicesOfPoint = int64_t{1} << 40;

grpc::Status AskServer(Connection* connection, BenchReport* report) {
  const auto stub = v1::Control::NewStub(connection->channel());
  {
    Call call(connection);
    const grpc::Status status = stub->GetServerInfo(call.context(), {}, &report->server);
    if (!status.ok()) return status;
  }
  Call call(connection);
  v1::GetModelInfoRequest request;
  if (report->options.workload.model) request.set_model(*report->options.workload.model);
  return stub->GetModelInfo(call.context(), request, &report->model);
}

// How often two runs of the same request gave other ids.
void Compare(const LoadResult& load, const LoadResult& alone, BenchCheck* check) {
  int64_t number = 0;
  for (const auto& [order, sample] : load.samples) {
    const auto same =
        std::find_if(alone.samples.begin(), alone.samples.end(),
                     [number](const auto& candidate) { return candidate.second.index == number; });
    ++number;
    if (same == alone.samples.end()) continue;
    ++check->compared;
    const std::vector<int32_t>& ids = same->second.ids;
    if (ids == sample.ids) continue;
    const auto differs =
        std::mismatch(ids.begin(), ids.end(), sample.ids.begin(), sample.ids.end()).first;
    check->different.push_back({sample.index, differs - ids.begin()});
  }
}

// The runs of one benchmark against one server.
class Bench {
 public:
  Bench(const BenchOptions& options, Connection* connection, const Console& console)
      : connection_(*connection), progress_(console, !options.json) {
    double streams = options.concurrency;
    for (const double step : options.sweep_concurrency) streams = std::max(streams, step);
    const bool open = options.rate.has_value() || !options.sweep_rate.empty();
    const auto most = open ? options.threads : static_cast<int32_t>(streams);
    channels_.push_back(connection_.channel());
    for (int32_t i = 1; i < std::min(options.threads, most); ++i) {
      channels_.push_back(connection_.NewChannel());
    }
    for (const auto& channel : channels_) {  // or the first requests would be slower
      channel->WaitForConnected(std::chrono::system_clock::now() + kConnectTime);
    }
  }

  // The requests of all points; a status for the user, with the exit code, if there are none.
  std::optional<int> Prepare(const BenchReport& report, const Console& console);

  // Runs one point. A status that is not OK means that nothing was measured.
  grpc::Status RunPoint(int64_t number, BenchReport* report);

 private:
  LoadPlan Plan(const BenchOptions& options) const;
  LoadResult Run(const std::string& phase, const LoadPlan& plan);
  void Check(BenchReport* report);

  Connection& connection_;
  ProgressBar progress_;
  std::optional<BenchRequests> requests_;
  std::vector<std::shared_ptr<grpc::Channel>> channels_;
};

std::optional<int> Bench::Prepare(const BenchReport& report, const Console& console) {
  constexpr int64_t kMostEntries = 2000;  // that a server is asked to count for a minute at most
  BenchWorkload workload = report.options.workload;
  workload.cache_salt = absl::StrCat("bench-", std::random_device()(), "-", std::random_device()());
  std::vector<BenchLengths> lengths;
  if (!workload.dataset.empty()) {
    auto dataset = ReadDataset(workload.dataset);
    if (!dataset.ok()) return ReportUsage(std::string(dataset.status().message()), console.err);
    const grpc::Status status = MeasureDataset(
        workload, *std::move(dataset), kMostEntries, &connection_,
        [this](int64_t done, int64_t of) {
          progress_.Draw(ProgressText("dataset", done, of));
          return !connection_.interrupted();
        },
        &lengths);
    progress_.Clear();
    if (!status.ok()) return ReportStatus(status, console.err);
  }
  auto requests = BenchRequests::Create(workload, report.model, std::move(lengths));
  if (!requests.ok()) return ReportUsage(std::string(requests.status().message()), console.err);
  requests_ = *std::move(requests);
  return std::nullopt;
}

LoadPlan Bench::Plan(const BenchOptions& options) const {
  const BenchWorkload& workload = options.workload;
  LoadPlan plan;
  plan.concurrency = options.concurrency;
  plan.rate = options.rate.value_or(0);
  plan.arrival_seed = workload.seed;
  plan.channels = channels_;
  plan.make_request = [this](int64_t index, int32_t turn, const std::vector<int32_t>& before) {
    return requests_->Make(index, turn, before);
  };
  plan.turns = workload.turns;
  plan.expected_tokens = workload.output_tokens.most;
  return plan;
}

LoadResult Bench::Run(const std::string& phase, const LoadPlan& of) {
  LoadPlan plan = of;
  plan.timeout_seconds =
      connection_.options().timeout_seconds.value_or(std::numeric_limits<double>::infinity());
  LoadResult result = RunLoad(plan, [&](const LoadProgress& progress) {
    progress_.Draw(ProgressLine(phase, progress, plan.count, plan.duration_seconds));
    return !connection_.interrupted();
  });
  progress_.Clear();
  return result;
}

grpc::Status Bench::RunPoint(int64_t number, BenchReport* report) {
  const BenchOptions& options = report->options;
  LoadPlan plan = Plan(options);
  if (options.warm_up > 0) {
    plan.count = options.warm_up;
    plan.first_index = number * kIndicesOfPoint + kIndicesOfPoint / 2;
    const LoadResult load = Run("warm-up", plan);
    const grpc::Status worst = load.worst();
    if (!connection_.interrupted() && !worst.ok()) {
      return grpc::Status(worst.error_code(), absl::StrCat("warm-up: ", worst.error_message()));
    }
  }
  if (connection_.interrupted()) {
    return grpc::Status(grpc::StatusCode::CANCELLED, "interrupted before anything was measured");
  }
  plan.count = options.count;
  plan.first_index = number * kIndicesOfPoint;
  plan.duration_seconds = options.duration.value_or(std::numeric_limits<double>::infinity());
  plan.num_samples = options.check;
  report->load = Run("bench", plan);
  report->interrupted = connection_.interrupted();
  if (!report->interrupted && !report->load.samples.empty()) Check(report);
  return grpc::Status::OK;
}

void Bench::Check(BenchReport* report) {
  std::vector<const v1::GenerateRequest*> requests;
  for (const auto& [order, sample] : report->load.samples) requests.push_back(&sample.request);
  LoadPlan plan;
  plan.channels = channels_;
  plan.count = static_cast<int64_t>(requests.size());
  plan.num_samples = plan.count;
  plan.make_request = [&requests](int64_t index, int32_t, const std::vector<int32_t>&) {
    v1::GenerateRequest request = *requests[static_cast<size_t>(index)];
    request.clear_cache_salt();
    request.set_cache_prompt(false);  // or a wrong block would answer twice
    return std::optional(std::move(request));
  };
  const LoadResult alone = Run("check", plan);
  Compare(report->load, alone, &report->check);
  report->check.failure = alone.worst();
}

int ExitCodeOf(const std::vector<BenchReport>& points) {
  std::map<grpc::StatusCode, int64_t> failures;
  bool different = false;
  for (const BenchReport& point : points) {
    if (point.interrupted) return ExitCode(grpc::StatusCode::CANCELLED);
    different = different || !point.check.different.empty();
    for (const auto& [code, of_code] : point.load.failures) failures[code] += of_code.count;
    if (!point.check.failure.ok()) ++failures[point.check.failure.error_code()];
  }
  if (different) return ExitCode(grpc::StatusCode::DATA_LOSS);
  const auto commonest =
      std::max_element(failures.begin(), failures.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  return commonest == failures.end() ? kExitOk : ExitCode(commonest->first);
}

// Whether the file could be written; errno is of the attempt.
bool WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text << std::flush;
  return file.good();
}

void Print(const BenchOptions& options, const std::vector<BenchReport>& points, std::ostream& out) {
  if (options.json) {
    using Json = nlohmann::ordered_json;  // a status message may hold any bytes
    const Json json = options.sweeps() ? SweepToJson(points) : ToJson(points.front());
    out << json.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
  } else if (!options.sweeps()) {
    PrintTable(points.front(), out);
  }
}

}  // namespace

int RunBench(const BenchOptions& options, const ConnectionOptions& connection_options,
             const Console& console) {
  const absl::Status fit = CheckOptions(options);
  if (!fit.ok()) return ReportUsage(std::string(fit.message()), console.err);
  Connection connection(connection_options);
  BenchReport report;
  report.options = options;
  report.connection = connection_options;
  const grpc::Status asked = AskServer(&connection, &report);
  if (!asked.ok()) return ReportStatus(asked, console.err);
  Bench bench(options, &connection, console);
  if (const auto failed = bench.Prepare(report, console)) return *failed;

  const bool rows = options.sweeps() && !options.json;  // shown as they come: a sweep is long
  if (rows) PrintSweepHead(report, console.out);
  std::vector<BenchReport> points;
  grpc::Status ended;
  for (const BenchOptions& of_point : options.Points()) {
    BenchReport point = report;
    point.options = of_point;
    ended = bench.RunPoint(static_cast<int64_t>(points.size()), &point);
    if (!ended.ok()) break;
    if (rows) PrintSweepRow(point, console.out);
    points.push_back(std::move(point));
    if (points.back().interrupted) break;
  }
  if (!points.empty()) Print(options, points, console.out);
  if (!options.plot.empty() && !points.empty() && !WriteFile(options.plot, PlotOfSweep(points))) {
    return ReportUsage(absl::StrCat("--plot ", options.plot, " cannot be written"), console.err);
  }
  return ended.ok() ? ExitCodeOf(points) : ReportStatus(ended, console.err);
}

}  // namespace ferrite

#include "client/bench.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/bench_report.h"
#include "client/exit_code.h"
#include "client/load.h"
#include "client/options.h"
#include "client/progress.h"
#include "ferrite/v1/control.grpc.pb.h"

namespace ferrite {
namespace {

constexpr char kFooter[] =
    "Closed loop: so many streams as --concurrency says are in flight at all times; when one "
    "ends,\n"
    "the next request is sent. Prompts are random token ids that depend on --seed, the request's\n"
    "number and the model's vocabulary alone; end tokens do not end an output.\n"
    "\n"
    "What is counted, on the client's clock:\n"
    "  time to first token  from sending the request to the first message with a token\n"
    "  message gap          between two messages with tokens of one stream, once each\n"
    "  inter-token          the same a token: a gap of g before a message of k tokens counts as\n"
    "                       k times g/k; tokens of a stream's first message are not in it\n"
    "  end to end           from sending to the stream's status; completed requests only\n"
    "Percentiles are samples (nearest rank), never interpolated. Tokens of requests that fail or\n"
    "are cut short by Ctrl-C count as far as they came.\n"
    "\n"
    "Exit code: 0 if every request completed; else 10 plus the status code of the commonest\n"
    "failure, or 11 after Ctrl-C.";

constexpr std::chrono::seconds kConnectTime(5);

// The runs of one benchmark against one server.
class Bench {
 public:
  Bench(const BenchOptions& options, Connection* connection, const Console& console,
        BenchRequests requests)
      : options_(options),
        connection_(*connection),
        progress_(console, !options.json),
        requests_(std::move(requests)) {
    channels_.push_back(connection_.channel());
    const int32_t threads = std::min(options_.threads, options_.concurrency);
    for (int32_t i = 1; i < threads; ++i) channels_.push_back(connection_.NewChannel());
    for (const auto& channel : channels_) {  // or the first requests would be slower
      channel->WaitForConnected(std::chrono::system_clock::now() + kConnectTime);
    }
  }

  LoadResult Run(const std::string& phase, int64_t first_index, int64_t count,
                 int32_t concurrency) {
    LoadPlan plan;
    plan.first_index = first_index;
    plan.count = count;
    plan.concurrency = concurrency;
    plan.channels = channels_;
    plan.make_request = [this](int64_t index) { return requests_.Make(index); };
    plan.prompt_tokens = options_.workload.prompt_tokens;
    plan.output_tokens = options_.workload.output_tokens;
    plan.timeout_seconds =
        connection_.options().timeout_seconds.value_or(std::numeric_limits<double>::infinity());
    plan.keep_ids_below = options_.check;
    LoadResult result = RunLoad(plan, [&](const LoadProgress& progress) {
      progress_.Draw(ProgressLine(phase, progress, count));
      return !connection_.interrupted();
    });
    progress_.Clear();
    return result;
  }

 private:
  const BenchOptions& options_;
  Connection& connection_;
  ProgressBar progress_;
  const BenchRequests requests_;
  std::vector<std::shared_ptr<grpc::Channel>> channels_;
};

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

// Why a run before the measured one does not let the benchmark go on; OK if it does.
grpc::Status Preliminary(const char* phase, const LoadResult& load, const Connection& connection) {
  if (connection.interrupted()) {
    return grpc::Status(grpc::StatusCode::CANCELLED, "interrupted before anything was measured");
  }
  const grpc::Status worst = load.worst();
  if (worst.ok()) return worst;
  return grpc::Status(worst.error_code(), absl::StrCat(phase, ": ", worst.error_message()));
}

void Compare(const LoadResult& solo, BenchReport* report) {
  for (const auto& [index, ids] : report->load.ids) {
    const auto alone = solo.ids.find(index);
    if (alone == solo.ids.end()) continue;
    ++report->compared;
    report->different_from_solo += ids != alone->second ? 1 : 0;
  }
}

}  // namespace

CLI::App* AddBench(CLI::App* app, BenchOptions* options) {
  constexpr int32_t kMostTokens = 1 << 24;
  constexpr int64_t kMostRequests = 100'000'000;
  BenchWorkload& workload = options->workload;
  CLI::App* command = app->add_subcommand("bench", "Measure latency and throughput under load");
  command->footer(kFooter);
  AddBounded(command, "--concurrency", &options->concurrency, 1, 65536, "Streams in flight");
  AddBounded(command, "--prompt-tokens", &workload.prompt_tokens, 1, kMostTokens,
             "Tokens of each prompt");
  AddBounded(command, "--output-tokens", &workload.output_tokens, 1, kMostTokens,
             "Tokens that each request generates, exactly");
  AddBounded<int64_t>(command, "--count", &options->count, 1, kMostRequests, "Requests to measure");
  AddBounded<uint64_t>(command, "--seed", &workload.seed, 0, std::numeric_limits<uint64_t>::max(),
                       "What prompts and sampling are drawn from");
  AddBounded(command, "--temperature", &workload.temperature, 0.0, 100.0, "0 is greedy");
  AddBounded<int64_t>(command, "--warm-up", &options->warm_up, 0, kMostRequests,
                      "Requests before, at the same concurrency and with other prompts, that are "
                      "not measured");
  AddBounded<int64_t>(command, "--check", &options->check, 0, kMostRequests,
                      "Generate the first K prompts alone before, and say how many of them give "
                      "other tokens under load");
  AddBounded(command, "--threads", &options->threads, 1, 256,
             "Threads and connections that the streams are spread over");
  AddOptional(command, "--model", &workload.model, "The model's served name");
  command->add_flag("--json", options->json, "Print one JSON object");
  return command;
}

int RunBench(const BenchOptions& options, const ConnectionOptions& connection_options,
             const Console& console) {
  if (options.check > options.count) {
    return ReportUsage(absl::StrCat("--check is ", options.check,
                                    "; it must be at most --count, which is ", options.count),
                       console.err);
  }
  Connection connection(connection_options);
  BenchReport report;
  report.options = options;
  report.connection = connection_options;
  const grpc::Status asked = AskServer(&connection, &report);
  if (!asked.ok()) return ReportStatus(asked, console.err);
  auto requests = BenchRequests::Create(options.workload, report.model);
  if (!requests.ok()) return ReportUsage(std::string(requests.status().message()), console.err);

  Bench bench(options, &connection, console, *std::move(requests));
  LoadResult solo;
  if (options.check > 0) {
    solo = bench.Run("check", 0, options.check, 1);
    const grpc::Status status = Preliminary("check", solo, connection);
    if (!status.ok()) return ReportStatus(status, console.err);
  }
  if (options.warm_up > 0) {
    const LoadResult load =
        bench.Run("warm-up", options.count, options.warm_up, options.concurrency);
    const grpc::Status status = Preliminary("warm-up", load, connection);
    if (!status.ok()) return ReportStatus(status, console.err);
  }
  report.load = bench.Run("bench", 0, options.count, options.concurrency);
  report.interrupted = connection.interrupted();
  Compare(solo, &report);
  if (options.json) {
    using Json = nlohmann::ordered_json;  // a status message may hold any bytes
    console.out << ToJson(report).dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
  } else {
    PrintTable(report, console.out);
  }
  if (report.interrupted) return ExitCode(grpc::StatusCode::CANCELLED);
  return ExitCode(report.load.worst().error_code());
}

}  // namespace ferrite

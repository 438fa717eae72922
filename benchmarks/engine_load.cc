// The closed loop of `ferrite bench` over the engine alone: the same requests, options and report,
// without gRPC, so that what serving costs can be told from what the engine takes. The arguments
// before "--" are those of ferrite-server, the ones after it those of `ferrite bench`.
//   engine_load --model.path=FOLDER --backend.type=cuda -- --sweep-concurrency 1,8,64 --json
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <deque>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "benchmarks/engine_program.h"
#include "client/bench_options.h"
#include "client/bench_report.h"
#include "client/bench_requests.h"
#include "client/bench_sweep.h"
#include "client/load_result.h"
#include "engine/clock.h"
#include "engine/engine.h"
#include "engine/mutex.h"
#include "engine/status_macros.h"
#include "server/config.h"
#include "server/generate_params.h"
#include "server/served_model.h"

namespace ferrite {
namespace {

constexpr int64_t kIndicesOfPoint = int64_t{1} << 40;

class Flight;

// The flights whose output is to be taken. Thread-safe.
class ReadyQueue {
 public:
  void Push(std::shared_ptr<Flight> flight) {
    MutexLock lock(&mutex_);
    ready_.push_back(std::move(flight));
    changed_.NotifyOne();
  }

  // Waits for one.
  std::shared_ptr<Flight> Pop() {
    MutexLock lock(&mutex_);
    while (ready_.empty()) changed_.Wait(&mutex_);
    std::shared_ptr<Flight> flight = std::move(ready_.front());
    ready_.pop_front();
    return flight;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::deque<std::shared_ptr<Flight>> ready_ ABSL_GUARDED_BY(mutex_);
};

// One request in the engine.
class Flight final : public TokenStream::Listener, public std::enable_shared_from_this<Flight> {
 public:
  Flight(ReadyQueue* queue, int64_t prompt_tokens)
      : queue_(queue), prompt_tokens_(prompt_tokens), sent_(Clock::now()) {}

  static std::shared_ptr<Flight> Create(ReadyQueue* queue, const EngineRequest& request) {
    auto flight = std::make_shared<Flight>(queue, static_cast<int64_t>(request.prompt.size()));
    flight->stream_ = std::make_shared<TokenStream>(TokenStream::Mode::kEveryOutput);
    flight->stream_->SetListener(flight);
    flight->stream_->Reserve(request.max_new_tokens, request.sampling.num_logprobs);
    return flight;
  }

  const std::shared_ptr<TokenStream>& stream() const { return stream_; }

  void OnOutput() override { queue_->Push(shared_from_this()); }

  // Adds what has come to `result`; says whether that was the end.
  bool Take(LoadResult* result) {
    if (ended_) return false;  // told of what was taken with the end
    do {
      ended_ = stream_->Take(&delta_);
      Count(static_cast<int64_t>(delta_.token_ids.size()), result);
    } while (!ended_ && !delta_.empty());
    if (ended_) Complete(result);
    return ended_;
  }

 private:
  void Count(int64_t tokens, LoadResult* result) {
    if (tokens == 0) return;
    const Clock::time_point now = Clock::now();
    if (tokens_ == 0) {
      first_token_ = now;
      first_tokens_ = tokens;
      result->first_token.push_back(SecondsBetween(sent_, now));
      result->input_tokens += prompt_tokens_;
    } else {
      const double gap = SecondsBetween(last_token_, now);
      result->message_gaps.push_back(gap);
      result->inter_token.insert(result->inter_token.end(), static_cast<size_t>(tokens),
                                 gap / static_cast<double>(tokens));
    }
    last_token_ = now;
    tokens_ += tokens;
    result->output_tokens += tokens;
    ++result->token_messages;
  }

  void Complete(LoadResult* result) {
    const Completion& completion = stream_->completion();
    result->cached_tokens += completion.cached_tokens;
    if (!completion.status.ok()) {
      LoadFailures& failures =
          result->failures[static_cast<grpc::StatusCode>(completion.status.code())];
      if (failures.count++ == 0) failures.message = std::string(completion.status.message());
      failures.seconds.push_back(SecondsBetween(sent_, Clock::now()));
      return;
    }
    ++result->completed;
    const int64_t later = tokens_ - first_tokens_;
    const double spread = SecondsBetween(first_token_, last_token_);
    result->times.push_back({SecondsBetween(sent_, first_token_),
                             later > 0 ? spread / static_cast<double>(later) : 0,
                             SecondsBetween(sent_, Clock::now()), tokens_});
  }

  ReadyQueue* const queue_;
  const int64_t prompt_tokens_;
  const Clock::time_point sent_;
  std::shared_ptr<TokenStream> stream_;
  OutputDelta delta_;
  Clock::time_point first_token_;
  Clock::time_point last_token_;
  int64_t tokens_ = 0;
  int64_t first_tokens_ = 0;
  bool ended_ = false;
};

double CpuSeconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

// A closed loop around an engine, which may tell `queue` of what has ended until it is destroyed.
struct EngineLoop {
  ReadyQueue* queue;
  const BenchRequests* requests;
  RequestContext context;
  Engine* engine;

  // Keeps `concurrency` requests in flight until `count`, with the indices from `first` on, have
  // ended.
  absl::StatusOr<LoadResult> Run(int32_t concurrency, int64_t first, int64_t count) const;
  absl::StatusOr<std::shared_ptr<Flight>> Send(int64_t index) const;
};

absl::StatusOr<std::shared_ptr<Flight>> EngineLoop::Send(int64_t index) const {
  ASSIGN_OR_RETURN(GenerateCall call, ResolveGenerateRequest(*requests->Make(index), context));
  const auto flight = Flight::Create(queue, call.request);
  RETURN_IF_ERROR(engine->Submit(std::move(call.request), flight->stream()));
  return flight;
}

absl::StatusOr<LoadResult> EngineLoop::Run(int32_t concurrency, int64_t first,
                                           int64_t count) const {
  LoadResult result;
  rusage before{};
  getrusage(RUSAGE_SELF, &before);
  const Clock::time_point start = Clock::now();
  std::unordered_set<std::shared_ptr<Flight>> flights;  // their streams do not keep them alive
  const auto send = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(auto flight, Send(first + result.started++));
    flights.insert(std::move(flight));
    return absl::OkStatus();
  };
  while (result.started < std::min<int64_t>(concurrency, count)) RETURN_IF_ERROR(send());
  while (!flights.empty()) {
    const std::shared_ptr<Flight> flight = queue->Pop();
    if (!flight->Take(&result)) continue;
    flights.erase(flight);
    if (result.started < count) RETURN_IF_ERROR(send());
  }
  result.seconds = SecondsBetween(start, Clock::now());
  rusage after{};
  getrusage(RUSAGE_SELF, &after);
  result.user_seconds = CpuSeconds(after.ru_utime) - CpuSeconds(before.ru_utime);
  result.system_seconds = CpuSeconds(after.ru_stime) - CpuSeconds(before.ru_stime);
  return result;
}

// What `ferrite bench` would ask of a server.
v1::GetModelInfoResponse ModelInfo(const ServedModel& model, const Engine& engine) {
  v1::GetModelInfoResponse info;
  info.set_name(model.name);
  info.set_vocab_size(model.config.vocab_size);
  info.set_context_length(engine.context_length());
  info.set_num_parameters(engine.worker_info(0).num_parameters);
  if (model.config.bos_token_id.has_value()) info.set_bos_token_id(*model.config.bos_token_id);
  const std::vector<TokenId>& ends = model.end_token_ids();
  info.mutable_eos_token_ids()->Assign(ends.begin(), ends.end());
  return info;
}

void AddWorkers(const Engine& engine, v1::GetServerInfoResponse* server) {
  for (size_t i = 0; i < engine.num_workers(); ++i) {
    const BackendInfo& backend = engine.worker_info(i);
    v1::WorkerInfo* worker = server->add_workers();
    worker->set_device(backend.device);
    worker->set_compute_type(backend.compute_type);
    worker->set_kv_blocks(backend.num_blocks);
    worker->set_kv_block_size(backend.block_size);
  }
}

absl::Status CheckServed(const BenchOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  if (options.rate.has_value() || !options.sweep_rate.empty() || options.duration.has_value() ||
      options.workload.turns > 1 || !options.workload.dataset.empty()) {
    return absl::InvalidArgumentError(
        "engine_load runs closed loops with a count: --rate, --sweep-rate, --duration, --turns and "
        "--dataset are for `ferrite bench`");
  }
  return absl::OkStatus();
}

absl::Status Run(const ServerConfig& config, const BenchOptions& options) {
  RETURN_IF_ERROR(CheckServed(options));
  ReadyQueue queue;  // before the engine, whose threads know it
  ASSIGN_OR_RETURN(const LoadedEngine loaded, LoadEngine(config));
  const ServedModel& model = loaded.model;
  const std::unique_ptr<Engine>& engine = loaded.engine;
  const RequestContext context{&model, engine.get(), config.defaults, config.limits};
  BenchReport report;
  report.options = options;
  report.connection.server = "in process";
  report.model = ModelInfo(model, *engine);
  AddWorkers(*engine, &report.server);
  ASSIGN_OR_RETURN(const BenchRequests requests,
                   BenchRequests::Create(options.workload, report.model));
  const EngineLoop loop{&queue, &requests, context, engine.get()};
  std::vector<BenchReport> points;
  if (!options.json) PrintSweepHead(report, std::cout);
  for (const BenchOptions& of_point : options.Points()) {
    const auto first = static_cast<int64_t>(points.size()) * kIndicesOfPoint;
    BenchReport point = report;
    point.options = of_point;
    point.options.check = 0;  // `ferrite bench` compares answers
    if (of_point.warm_up > 0) {
      RETURN_IF_ERROR(
          loop.Run(of_point.concurrency, first + kIndicesOfPoint / 2, of_point.warm_up).status());
    }
    ASSIGN_OR_RETURN(point.load, loop.Run(of_point.concurrency, first, of_point.count));
    if (!options.json) PrintSweepRow(point, std::cout);
    points.push_back(std::move(point));
    const LoadResult& load = points.back().load;
    if (load.failed() > 0) return absl::InternalError(load.worst().error_message());
  }
  if (options.json) std::cout << SweepToJson(points).dump(2) << "\n";
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  BenchOptions options;
  CLI::App app("`ferrite bench` over the engine alone");
  AddBench(&app, &options);
  const auto configured = ParseArguments(argc, argv, "bench", &app);
  if (const int* exit_code = std::get_if<int>(&configured)) {
    return *exit_code;
  }
  const absl::Status status = Run(std::get<ServerConfig>(configured), options);
  if (!status.ok()) {
    std::cerr << status << "\n";
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace ferrite

int main(int argc, char** argv) { return ferrite::Main(argc, argv); }

// What the host adds to a step: scheduling, token delivery and gRPC, around a fake device that
// takes a fixed time a step. Prints one JSON object. The gRPC clients run in this process, so their
// share of the CPU is in the figures too.
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ferrite/v1/inference.grpc.pb.h"
#include "server/server.h"
#include "tests/testing/allocation_counter.h"
#include "tests/testing/fake_backend.h"

namespace ferrite {
namespace {

struct Options {
  int sequences = 256;
  int step_us = 3500;  // an H200's step at this size
  int tokens = 1500;   // a sequence
  int channels = 4;
  std::string model = "models/stories260k";
};

// The worker thread's clock and allocations, step by step.
struct StepLog {
  std::vector<Clock::time_point> wait_begin, wait_end;
  std::vector<int64_t> bytes;
};

class ClientStream final : public grpc::ClientReadReactor<v1::GenerateStreamResponse> {
 public:
  ClientStream(v1::Inference::Stub* stub, int tokens, std::atomic<int>* open) : open_(open) {
    request_.mutable_token_ids()->add_ids(300);
    request_.mutable_stopping()->set_max_new_tokens(tokens);
    request_.mutable_stopping()->set_ignore_eos(true);
    stub->async()->GenerateStream(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) {
      return;
    }
    ++messages_;
    tokens_ += response_.delta().choices_size() > 0 ? response_.delta().choices(0).token_ids_size()
               : response_.finished().choices_size() > 0
                   ? response_.finished().choices(0).token_ids_size()
                   : 0;
    StartRead(&response_);
  }
  void OnDone(const grpc::Status& status) override {
    ok_ = status.ok();
    if (--*open_ == 0) {
      open_->notify_all();
    }
  }
  int64_t messages() const { return messages_; }
  int64_t tokens() const { return tokens_; }
  bool ok() const { return ok_; }

 private:
  std::atomic<int>* const open_;
  v1::GenerateRequest request_;
  v1::GenerateStreamResponse response_;
  grpc::ClientContext context_;
  int64_t messages_ = 0;
  int64_t tokens_ = 0;
  bool ok_ = false;
};

double Percentile(std::vector<double> values, double q) {
  if (values.empty()) {
    return 0;
  }
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
}

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

absl::StatusOr<std::unique_ptr<Server>> StartServer(const Options& options, const Logger* logger,
                                                    StepLog* log) {
  test::FakeBackendOptions fake;
  fake.max_sequences = options.sequences;
  fake.max_step_tokens = 2 * options.sequences;
  fake.max_sequence_length = options.tokens + 16;
  fake.block_size = 16;
  fake.num_blocks = options.sequences * (fake.max_sequence_length / 16 + 2);
  fake.step_time = std::chrono::microseconds(options.step_us);
  fake.check_kv = false;
  fake.source = [](std::span<const TokenId> last) { return 260 + (last.back() * 7 + 3) % 250; };
  for (auto* times : {&log->wait_begin, &log->wait_end}) {
    times->reserve(options.tokens * 4);
  }
  log->bytes.reserve(options.tokens * 4);
  fake.before_wait = [log] { log->wait_begin.push_back(Clock::now()); };
  fake.after_wait = [log] {
    log->wait_end.push_back(Clock::now());
    log->bytes.push_back(test::ThreadAllocations().bytes);
  };
  std::vector<std::unique_ptr<Backend>> backends;
  backends.push_back(std::make_unique<test::FakeBackend>(fake));

  ServerConfig config;
  config.server.listen = "127.0.0.1:0";
  config.server.drain_grace_seconds = 0;
  config.scheduler.max_running = options.sequences;
  config.scheduler.max_step_tokens = 2 * options.sequences;
  config.scheduler.max_waiting = options.sequences;
  auto model = LoadServedModel(options.model, "fake");
  if (!model.ok()) {
    return model.status();
  }
  return Server::CreateWithBackends(config, *std::move(model), std::move(backends), logger,
                                    Clock::now());
}

// Over the middle of the run, where every sequence decodes.
nlohmann::json Summary(const Options& options, const StepLog& log) {
  const size_t first = log.wait_end.size() / 5;
  const size_t last = log.wait_end.size() - log.wait_end.size() / 5;
  std::vector<double> host, added;
  for (size_t step = first; step < last; ++step) {
    host.push_back(1e6 * SecondsBetween(log.wait_end[step], log.wait_begin[step + 1]));
    added.push_back(1e6 * SecondsBetween(log.wait_end[step], log.wait_end[step + 1]) -
                    options.step_us);
  }
  const double seconds = SecondsBetween(log.wait_end[first], log.wait_end[last]);
  const auto steps = static_cast<double>(last - first);
  return {{"sequences", options.sequences},
          {"device_step_us", options.step_us},
          {"steps", last - first},
          {"tokens_per_second", options.sequences * steps / seconds},
          {"worker_host_us_p50", Percentile(host, 0.5)},
          {"worker_host_us_p99", Percentile(host, 0.99)},
          {"added_to_step_us_p50", Percentile(added, 0.5)},
          {"added_to_step_us_p99", Percentile(added, 0.99)},
          {"worker_bytes_allocated_per_step",
           static_cast<double>(log.bytes[last] - log.bytes[first]) / steps}};
}

int Run(const Options& options) {
  const Logger logger(LogFormat::kText, LogLevel::kWarning);
  StepLog log;
  auto server = StartServer(options, &logger, &log);
  if (!server.ok()) {
    std::cerr << server.status() << "\n";
    return 1;
  }
  std::vector<std::unique_ptr<v1::Inference::Stub>> stubs;
  for (int i = 0; i < options.channels; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stubs.push_back(v1::Inference::NewStub(
        grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", (*server)->port()),
                                  grpc::InsecureChannelCredentials(), arguments)));
  }
  std::atomic<int> open{options.sequences};
  const double cpu_before = CpuSeconds();
  std::vector<std::unique_ptr<ClientStream>> streams;
  for (int i = 0; i < options.sequences; ++i) {
    streams.push_back(
        std::make_unique<ClientStream>(stubs[i % stubs.size()].get(), options.tokens, &open));
  }
  for (int left = open; left > 0; left = open) {
    open.wait(left);
  }
  const double cpu = CpuSeconds() - cpu_before;
  int64_t messages = 0, tokens = 0;
  for (const auto& stream : streams) {
    if (!stream->ok() || stream->tokens() != options.tokens) {
      std::cerr << "a stream failed or lost tokens\n";
      return 1;
    }
    messages += stream->messages();
    tokens += stream->tokens();
  }
  server->reset();
  nlohmann::json result = Summary(options, log);
  result["tokens_per_message"] = static_cast<double>(tokens) / static_cast<double>(messages);
  result["process_cpu_us_per_token"] = 1e6 * cpu / static_cast<double>(tokens);
  std::cout << result.dump(2) << "\n";
  return 0;
}

}  // namespace
}  // namespace ferrite

int main(int argc, char** argv) {
  ferrite::Options options;
  CLI::App app("Host time that scheduling, token delivery and gRPC add to a step");
  app.add_option("--sequences", options.sequences)->check(CLI::Range(1, 4096));
  app.add_option("--step-us", options.step_us, "what the fake device takes")
      ->check(CLI::Range(0, 1000000));
  app.add_option("--tokens", options.tokens, "generated by each sequence")
      ->check(CLI::Range(50, 100000));
  app.add_option("--channels", options.channels)->check(CLI::Range(1, 256));
  app.add_option("--model", options.model, "whose tokenizer is used");
  CLI11_PARSE(app, argc, argv);
  return ferrite::Run(options);
}

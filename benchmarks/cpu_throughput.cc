// What the CPU backend does with a model: decode of one stream and of several together, prefill,
// embeddings, memory, and how much of the machine's read bandwidth decode reaches. Drives the
// scheduler and the backend as a worker does, sampling included. Prints one JSON object.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "benchmarks/read_bandwidth.h"
#include "cpu/cpu_backend.h"
#include "engine/clock.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"
#include "engine/scheduler.h"
#include "engine/status_macros.h"
#include "engine/tokenizer/tokenizer.h"

namespace ferrite {
namespace {

struct Options {
  std::string model = "models/smollm2-135m-instruct";
  std::string text = "LICENSE";
  std::string compute_type = "auto";
  int threads = 0;
  int prompt = 128;
  int generated = 128;
  std::vector<int> streams = {1, 8};
  int prefill = 512;
  std::vector<int> embed;  // batch sizes
  int embed_tokens = 32;   // of an input
  int repeat = 3;
  bool bandwidth = true;
};

class NoObserver final : public Scheduler::Observer {
  void OnLeftWaiting(const Sequence&) override {}
  void OnFinished(const Sequence&) override {}
};

// One load of requests, run to its end.
struct Run {
  double decode_tokens_per_second = 0;   // over the steps in which every sequence decodes
  double prefill_tokens_per_second = 0;  // over the steps before the first of these
  std::vector<TokenId> first_output;
};

class Bench {
 public:
  static absl::StatusOr<std::unique_ptr<Bench>> Create(const Options& options);

  // `streams` requests at once, each with its own part of the text as its prompt.
  absl::StatusOr<Run> Generate(int streams, int prompt_tokens, int new_tokens);

  // Embeds `batch` inputs at once; the vector of the first, and how long all took.
  struct Embedded {
    std::vector<float> first;
    double seconds = 0;
  };
  absl::StatusOr<Embedded> Embed(int batch, int tokens);

  std::vector<TokenId> Prompt(int stream, int tokens) const;
  const CpuBackend& backend() const { return *backend_; }
  double load_seconds() const { return load_seconds_; }

 private:
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<TokenId> text_;
  std::unique_ptr<CpuBackend> backend_;
  double load_seconds_ = 0;
  NoObserver observer_;
  std::unique_ptr<Scheduler> scheduler_;
  Batch batch_;
  StepResult result_;
};

absl::StatusOr<std::unique_ptr<Bench>> Bench::Create(const Options& options) {
  auto bench = std::make_unique<Bench>();
  ASSIGN_OR_RETURN(bench->tokenizer_, Tokenizer::Load(options.model));
  std::ifstream file(options.text);
  std::stringstream text;
  text << file.rdbuf();
  ASSIGN_OR_RETURN(bench->text_, bench->tokenizer_->Encode(text.str(), false));
  if (bench->text_.empty()) {
    return absl::InvalidArgumentError(options.text + ": no text to make prompts of");
  }
  int most_streams = *std::max_element(options.streams.begin(), options.streams.end());
  for (const int batch : options.embed) {
    most_streams = std::max(most_streams, batch);
  }
  const int length = std::max({options.prompt + options.generated, options.prefill + 1,
                               options.embed.empty() ? 0 : options.embed_tokens});
  const Clock::time_point begin = Clock::now();
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options.model));
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.model));
  ASSIGN_OR_RETURN(bench->backend_,
                   CpuBackend::Create(config, *checkpoint,
                                      {.compute_type = options.compute_type,
                                       .num_threads = options.threads,
                                       .max_sequences = most_streams,
                                       .max_step_tokens = std::max(options.prefill, most_streams),
                                       .max_sequence_length = length}));
  bench->load_seconds_ = SecondsBetween(begin, Clock::now());
  const BackendInfo& info = bench->backend_->info();
  bench->scheduler_ = std::make_unique<Scheduler>(
      info, SchedulerOptions{info.max_sequences, info.max_step_tokens}, &bench->observer_);
  return bench;
}

std::vector<TokenId> Bench::Prompt(int stream, int tokens) const {
  std::vector<TokenId> prompt(tokens);
  for (int i = 0; i < tokens; ++i) {
    prompt[i] = text_[(static_cast<size_t>(stream) * tokens + i) % text_.size()];
  }
  return prompt;
}

absl::StatusOr<Run> Bench::Generate(int streams, int prompt_tokens, int new_tokens) {
  std::vector<std::shared_ptr<TokenStream>> outputs;
  for (int s = 0; s < streams; ++s) {
    EngineRequest request;
    request.prompt = Prompt(s, prompt_tokens);
    request.sampling.temperature = 0;
    request.max_new_tokens = new_tokens;
    outputs.push_back(std::make_shared<TokenStream>(TokenStream::Mode::kEndOnly));
    scheduler_->Add(std::make_unique<Sequence>(std::move(request), *tokenizer_,
                                               backend_->info().block_size, outputs.back()));
  }
  double decode_seconds = 0, prefill_seconds = 0;
  int64_t decoded = 0;
  while (scheduler_->has_work()) {
    const Clock::time_point begin = Clock::now();
    scheduler_->Plan(begin, &batch_);
    RETURN_IF_ERROR(backend_->Launch(batch_));
    RETURN_IF_ERROR(backend_->Wait(&result_));
    RETURN_IF_ERROR(scheduler_->Complete(result_, Clock::now()));
    scheduler_->to_notify().clear();
    const double seconds = SecondsBetween(begin, Clock::now());
    if (batch_.num_tokens() == streams && batch_.num_samples() == streams) {
      decode_seconds += seconds;
      decoded += streams;
    } else if (decoded == 0) {
      prefill_seconds += seconds;
    }
  }
  Run run;
  for (const auto& output : outputs) {
    OutputDelta delta;
    if (!output->Take(&delta) || !output->completion().status.ok() ||
        output->completion().completion_tokens != new_tokens) {
      return absl::InternalError("a stream ended without all its tokens");
    }
    if (output == outputs.front()) {
      run.first_output = delta.token_ids;
    }
  }
  run.decode_tokens_per_second = decoded > 0 ? static_cast<double>(decoded) / decode_seconds : 0;
  run.prefill_tokens_per_second = streams * prompt_tokens / prefill_seconds;
  return run;
}

absl::StatusOr<Bench::Embedded> Bench::Embed(int batch, int tokens) {
  std::vector<std::shared_ptr<TokenStream>> outputs;
  for (int i = 0; i < batch; ++i) {
    EngineRequest request;
    request.prompt = Prompt(i, tokens);
    request.pooling = Pooling::kLast;
    outputs.push_back(std::make_shared<TokenStream>(TokenStream::Mode::kEndOnly));
    scheduler_->Add(std::make_unique<Sequence>(std::move(request), *tokenizer_,
                                               backend_->info().block_size, outputs.back()));
  }
  const Clock::time_point begin = Clock::now();
  while (scheduler_->has_work()) {
    scheduler_->Plan(Clock::now(), &batch_);
    RETURN_IF_ERROR(backend_->Launch(batch_));
    RETURN_IF_ERROR(backend_->Wait(&result_));
    RETURN_IF_ERROR(scheduler_->Complete(result_, Clock::now()));
    scheduler_->to_notify().clear();
  }
  Embedded embedded{.first = {}, .seconds = SecondsBetween(begin, Clock::now())};
  for (const auto& output : outputs) {
    OutputDelta delta;
    if (!output->Take(&delta) || !output->completion().status.ok() ||
        delta.embedding.size() != static_cast<size_t>(backend_->info().hidden_size)) {
      return absl::InternalError("an input ended without its vector");
    }
    if (output == outputs.front()) {
      embedded.first = delta.embedding;
    }
  }
  return embedded;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// Of this process, in bytes; -1 if the kernel does not say.
int64_t AnonymousMemory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) {
      return 1024 * std::stoll(line.substr(8));
    }
  }
  return -1;
}

nlohmann::json Memory(const CpuBackend& backend, int64_t after_load) {
  const int64_t weights = 2 * backend.info().num_parameters;
  const int64_t anonymous = AnonymousMemory();
  return {
      {"anonymous_bytes_after_load", after_load},
      {"anonymous_bytes", anonymous},
      {"weight_bytes_at_16_bits", weights},
      {"kv_pool_bytes", backend.kv_pool_bytes()},
      // What is not the KV pool, against the weights in 16 bits.
      {"anonymous_without_kv_over_weights",
       static_cast<double>(anonymous - backend.kv_pool_bytes()) / static_cast<double>(weights)}};
}

double Cosine(const std::vector<float>& a, const std::vector<float>& b) {
  const auto dot = [](const auto& x, const auto& y) {
    return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
  };
  return dot(a, b) / std::sqrt(dot(a, a) * dot(b, b));
}

// A batch size's throughput, once its first vector is what that input gives alone.
absl::StatusOr<nlohmann::json> MeasureEmbed(const Options& options, Bench* bench) {
  nlohmann::json report;
  ASSIGN_OR_RETURN(const Bench::Embedded alone, bench->Embed(1, options.embed_tokens));
  for (const int batch : options.embed) {
    std::vector<double> rates;
    for (int r = 0; r < options.repeat; ++r) {
      ASSIGN_OR_RETURN(const Bench::Embedded run, bench->Embed(batch, options.embed_tokens));
      if (const double cosine = Cosine(run.first, alone.first); !(cosine >= 0.9999)) {
        return absl::InternalError("in a batch of " + std::to_string(batch) +
                                   " a vector has the cosine " + std::to_string(cosine) +
                                   " with what its input gives alone");
      }
      rates.push_back(batch / run.seconds);
    }
    report.push_back({{"batch", batch},
                      {"tokens_an_input", options.embed_tokens},
                      {"inputs_per_second", Median(rates)},
                      {"tokens_per_second", Median(rates) * options.embed_tokens},
                      {"runs", rates}});
  }
  return report;
}

absl::StatusOr<nlohmann::json> Measure(const Options& options) {
  ASSIGN_OR_RETURN(const auto bench, Bench::Create(options));
  const int64_t after_load = AnonymousMemory();
  nlohmann::json report = {{"model", options.model},
                           {"compute_type", bench->backend().info().compute_type},
                           {"prompt_tokens", options.prompt},
                           {"new_tokens", options.generated},
                           {"load_seconds", bench->load_seconds()}};
  double one_stream = 0;
  for (const int streams : options.streams) {
    std::vector<double> rates;
    Run run;
    for (int r = 0; r < options.repeat; ++r) {
      ASSIGN_OR_RETURN(run, bench->Generate(streams, options.prompt, options.generated));
      rates.push_back(run.decode_tokens_per_second);
    }
    report["decode"].push_back({{"streams", streams},
                                {"tokens_per_second", Median(rates)},
                                {"runs", rates},
                                {"first_prompt_ids", bench->Prompt(0, options.prompt)},
                                {"first_output_ids", run.first_output}});
    if (streams == 1) {
      one_stream = Median(rates);
    }
  }
  std::vector<double> rates;
  for (int r = 0; r < options.repeat; ++r) {
    ASSIGN_OR_RETURN(const Run run, bench->Generate(1, options.prefill, 1));
    rates.push_back(run.prefill_tokens_per_second);
  }
  report["prefill"] = {
      {"tokens", options.prefill}, {"tokens_per_second", Median(rates)}, {"runs", rates}};
  if (!options.embed.empty()) {
    ASSIGN_OR_RETURN(report["embed"], MeasureEmbed(options, bench.get()));
  }
  report["memory"] = Memory(bench->backend(), after_load);
  if (options.bandwidth) {
    const int threads = options.threads > 0 ? options.threads
                                            : static_cast<int>(std::thread::hardware_concurrency());
    const double bandwidth = MeasureReadBandwidth(threads);
    report["read_bandwidth_bytes_per_second"] = bandwidth;
    const double bytes = 2.0 * static_cast<double>(bench->backend().info().num_parameters);
    report["one_stream_share_of_bandwidth_at_16_bits"] = bytes * one_stream / bandwidth;
  }
  return report;
}

int Main(const Options& options) {
  const auto report = Measure(options);
  if (!report.ok()) {
    std::cerr << report.status() << "\n";
    return 1;
  }
  std::cout << report->dump() << "\n";
  return 0;
}

}  // namespace
}  // namespace ferrite

int main(int argc, char** argv) {
  ferrite::Options options;
  CLI::App app("Throughput and memory of the CPU backend on a model");
  app.add_option("--model", options.model, "a Hugging Face folder");
  app.add_option("--text", options.text, "what prompts are cut from");
  app.add_option("--compute-type", options.compute_type, "auto, fp32 or bf16");
  app.add_option("--threads", options.threads, "0: every CPU")->check(CLI::Range(0, 1024));
  app.add_option("--prompt", options.prompt, "tokens")->check(CLI::Range(1, 1 << 20));
  app.add_option("--new", options.generated, "tokens")->check(CLI::Range(2, 1 << 20));
  app.add_option("--streams", options.streams, "how many at once: 1,8")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096));
  app.add_option("--prefill", options.prefill, "tokens")->check(CLI::Range(1, 65536));
  app.add_option("--embed", options.embed, "how many inputs to embed at once: 1,8,64")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096));
  app.add_option("--embed-tokens", options.embed_tokens, "of an input")
      ->check(CLI::Range(1, 65536));
  app.add_option("--repeat", options.repeat, "medians are of so many runs")
      ->check(CLI::Range(1, 1000));
  app.add_flag("!--no-bandwidth", options.bandwidth, "do not measure memory bandwidth");
  CLI11_PARSE(app, argc, argv);
  return ferrite::Main(options);
}

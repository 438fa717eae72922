// Whole steps of the CUDA backend on random weights of a named shape: decode at several batch sizes
// and prefill, each beside its floor on this chip (docs/performance.md). The step is as
// served: all layers, head, sampling, two steps outstanding. Prints one JSON object.
#include <cuda_profiler_api.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

#include "benchmarks/cuda/device_ceilings.h"
#include "benchmarks/cuda/graph_timeline.h"
#include "cuda/cuda_backend.h"
#include "cuda/cuda_status.h"
#include "cuda/model_shapes.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string model = "llama-3.1-8b";
  std::string type = "fp16";
  std::vector<int> batches = {1};
  int context = 192;
  int steps = 64;
  int prefill = 2048;
  bool graphs = true;
  bool deterministic = false;
  bool gaps = false;
  int int4 = 0;  // the layers' group size in 4 bits; 0: they are in 16 bits
  bool asymmetric = false;
  bool adjust = false;
  int logprobs = -1;
  std::string profile;  // "decode", "prefill"
};

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

int64_t MatrixElements(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t layer = hidden * (config.q_size() + 2 * config.kv_size()) +
                        hidden * config.q_size() + 3 * hidden * config.intermediate_size;
  return layer * config.num_layers + hidden * config.vocab_size;
}

int64_t BytesOf(const Linear& linear) {
  int64_t bytes = 0;
  for (const LinearPart& part : linear.parts()) {
    bytes += std::visit([](const auto& weight) { return weight.bytes(); }, part.weight);
  }
  return bytes;
}

// What the products of a step read: names as the layers have them, bytes as they are on the device.
// A table of kernels tells by these which product it sees.
nlohmann::json Products(const TransformerGpuWeights& weights) {
  const LayerWeights& layer = weights.layers.front();
  return {{"qkv", BytesOf(layer.qkv)},
          {"o", BytesOf(layer.o)},
          {"gate_up", BytesOf(layer.gate_up)},
          {"down", BytesOf(layer.down)},
          {"lm_head", BytesOf(weights.lm_head)}};
}

int64_t StepBytes(const TransformerGpuWeights& weights) {
  int64_t bytes = BytesOf(weights.lm_head);
  for (const LayerWeights& layer : weights.layers) {
    bytes += BytesOf(layer.qkv) + BytesOf(layer.o) + BytesOf(layer.gate_up) + BytesOf(layer.down);
  }
  return bytes;
}

// What every sequence asks for on top of a plain greedy token.
SamplingParams AskedParams(const Options& options, int32_t vocab_size) {
  constexpr int32_t kBiases = 32;
  SamplingParams params;
  params.temperature = 0;
  params.num_logprobs = options.logprobs;
  if (options.adjust) {
    params.repetition_penalty = 1.1f;
    params.frequency_penalty = 0.5f;
    for (int32_t i = 0; i < kBiases; ++i) {
      params.logit_bias.push_back({vocab_size / kBiases * i, i % 2 == 0 ? 2.0f : -2.0f});
    }
  }
  return params;
}

// Drives the backend with sequences that each have their own blocks, in order.
class Driver {
 public:
  Driver(CudaBackend* backend, int32_t length) : backend_(*backend) {
    blocks_ = (length + backend->info().block_size - 1) / backend->info().block_size;
    params_.temperature = 0;
  }

  // Of the sequences that Prefill begins from now on.
  void SetParams(const SamplingParams& params) { params_ = params; }

  // Fills `sequences` slots with `tokens` tokens each; returns the seconds it took.
  absl::StatusOr<double> Prefill(int32_t sequences, int32_t tokens) {
    const Clock::time_point begin = Clock::now();
    const BackendInfo& info = backend_.info();
    for (int32_t s = 0; s < sequences; ++s) {
      for (int32_t done = 0; done < tokens;) {
        const int32_t size = std::min(info.max_step_tokens, tokens - done);
        NewBatch();
        if (done == 0) {
          Assign(s);
        }
        Append(s, done, size, done + size == tokens, -1);
        done += size;
        RETURN_IF_ERROR(backend_.Launch(batch_));
        RETURN_IF_ERROR(backend_.Wait(&result_));
      }
    }
    return SecondsSince(begin);
  }

  // Decodes `steps` tokens of each sequence from position `context` on; returns seconds a step.
  absl::StatusOr<double> Decode(int32_t sequences, int32_t context, int32_t steps) {
    constexpr int32_t kWarmUp = 4;
    Clock::time_point begin = Clock::now();
    for (int32_t step = 0; step < steps + kWarmUp; ++step) {
      NewBatch();
      for (int32_t s = 0; s < sequences; ++s) {
        Append(s, context + step, 1, true, step == 0 ? -1 : s);
      }
      RETURN_IF_ERROR(backend_.Launch(batch_));
      if (step > 0) {
        RETURN_IF_ERROR(backend_.Wait(&result_));
      }
      if (step == kWarmUp) {
        begin = Clock::now();
      }
    }
    RETURN_IF_ERROR(backend_.Wait(&result_));
    return SecondsSince(begin) / (steps - 1);
  }

  // One decode step after a first, or one prefill step of a new sequence, alone between the marks
  // that profilers look for.
  absl::Status Profile(int32_t sequences, int32_t context, bool decode) {
    for (const bool measured : {false, true}) {
      NewBatch();
      if (!decode) {
        Assign(0);
        Append(0, 0, context, true, -1);
      }
      for (int32_t s = 0; decode && s < sequences; ++s) {
        Append(s, context + (measured ? 1 : 0), 1, true, measured ? s : -1);
      }
      if (measured) {
        FERRITE_RETURN_IF_CUDA_ERROR(cudaProfilerStart());
      }
      RETURN_IF_ERROR(backend_.Launch(batch_));
      RETURN_IF_ERROR(backend_.Wait(&result_));
    }
    FERRITE_RETURN_IF_CUDA_ERROR(cudaProfilerStop());
    return absl::OkStatus();
  }

 private:
  // A new sequence in slot `s`, with all its blocks.
  void Assign(int32_t s) {
    batch_.slot_assignments.push_back({SeqSlot{s}, &params_});
    for (int32_t b = 0; b < blocks_; ++b) {
      batch_.block_table_changes.push_back({SeqSlot{s}, b, BlockId{s * blocks_ + b}});
    }
  }

  void NewBatch() {
    batch_.Clear();
    batch_.step = ++step_;
  }

  void Append(int32_t slot, int32_t first, int32_t size, bool sample, int32_t input_row) {
    const int32_t block_size = backend_.info().block_size;
    for (int32_t i = first; i < first + size; ++i) {
      batch_.token_ids.push_back((i * 7919 + slot * 104729) % backend_.info().vocab_size);
      batch_.positions.push_back(i);
      batch_.slot_mapping.push_back((slot * blocks_ + i / block_size) * block_size +
                                    i % block_size);
    }
    if (sample) {
      batch_.sample_seqs.push_back(batch_.num_sequences());
      batch_.output_indices.push_back(0);
    }
    batch_.cu_seqlens.push_back(batch_.num_tokens());
    batch_.kv_lens.push_back(first + size);
    batch_.seq_slots.push_back(SeqSlot{slot});
    batch_.input_rows.push_back(input_row);
  }

  CudaBackend& backend_;
  int32_t blocks_;
  SamplingParams params_;
  Batch batch_;
  StepResult result_;
  uint64_t step_ = 0;
};

// What decode steps leave idle between them.
absl::StatusOr<nlohmann::json> MeasureGaps(Driver* driver, int32_t sequences,
                                           const Options& options) {
  ASSIGN_OR_RETURN(const auto timeline, GraphTimeline::Start(/*device=*/0, options.steps));
  RETURN_IF_ERROR(driver->Decode(sequences, options.context, options.steps).status());
  ASSIGN_OR_RETURN(GraphTimeline::Times times, timeline->Read());
  if (times.gaps_us.empty()) {
    return nullptr;
  }
  std::sort(times.gaps_us.begin(), times.gaps_us.end());
  std::sort(times.graphs_us.begin(), times.graphs_us.end());
  return nlohmann::json{{"p50", times.gaps_us[times.gaps_us.size() / 2]},
                        {"p99", times.gaps_us[times.gaps_us.size() * 99 / 100]},
                        {"max", times.gaps_us.back()},
                        {"graph_p50", times.graphs_us[times.graphs_us.size() / 2]}};
}

// Decode again with all that was asked for, beside the `plain` seconds a step.
absl::StatusOr<nlohmann::json> MeasureAsked(Driver* driver, int32_t sequences, double plain,
                                            int32_t vocab_size, const Options& options) {
  driver->SetParams(AskedParams(options, vocab_size));
  RETURN_IF_ERROR(driver->Prefill(sequences, options.context).status());
  ASSIGN_OR_RETURN(const double seconds, driver->Decode(sequences, options.context, options.steps));
  driver->SetParams(SamplingParams{.temperature = 0});
  return nlohmann::json{{"adjust", options.adjust},
                        {"logprobs", options.logprobs},
                        {"plain_ms", plain * 1e3},
                        {"ms", seconds * 1e3},
                        {"ratio", seconds / plain}};
}

absl::StatusOr<nlohmann::json> RunBench(const Options& options) {
  ASSIGN_OR_RETURN(const ModelConfig config, NamedModelShape(options.model));
  ASSIGN_OR_RETURN(const DeviceCeilings ceilings, MeasureDeviceCeilings());
  const int32_t most = *std::max_element(options.batches.begin(), options.batches.end());
  CudaBackendOptions backend_options;
  backend_options.max_sequences = most;
  backend_options.max_step_tokens = std::max(2048, most);
  backend_options.max_sequence_length =
      std::max(options.context + options.steps + 8, options.prefill + 1);
  backend_options.graphs = options.graphs;
  backend_options.deterministic = options.deterministic;
  const Clock::time_point begin = Clock::now();
  ASSIGN_OR_RETURN(
      const std::unique_ptr<CudaBackend> backend,
      CudaBackend::CreateRandom(config, options.type == "bf16" ? GpuType::kBf16 : GpuType::kFp16,
                                backend_options,
                                {.group_size = options.int4, .symmetric = !options.asymmetric}));
  nlohmann::json report = {{"model", options.model},
                           {"type", options.type},
                           {"deterministic", options.deterministic},
                           {"ready_seconds", SecondsSince(begin)},
                           {"read_tb_per_second", ceilings.read_bytes_per_second / 1e12},
                           {"matrix_tflops", ceilings.matrix_flops_per_second / 1e12}};
  const auto weight_bytes = static_cast<double>(StepBytes(backend->weights()));
  const double weight_flops = 2.0 * static_cast<double>(MatrixElements(config));  // a token
  report["step_weight_bytes"] = weight_bytes;
  if (options.int4 != 0) {
    const Int4Counts& counts = backend->weights().int4;
    report["int4"] = {{"group_size", options.int4},
                      {"symmetric", !options.asymmetric},
                      {"fused", counts.fused},
                      {"dequantized", counts.dequantized}};
  }
  const double kv_bytes = 4.0 * config.num_layers * config.kv_size();  // a token of context
  Driver driver(backend.get(), backend_options.max_sequence_length);
  if (!options.profile.empty()) {
    const bool decode = options.profile == "decode";
    const int32_t sequences = decode ? options.batches[0] : 1;
    driver.SetParams(AskedParams(options, config.vocab_size));
    if (decode) {
      RETURN_IF_ERROR(driver.Prefill(sequences, options.context).status());
    }
    RETURN_IF_ERROR(driver.Profile(sequences, decode ? options.context : options.prefill, decode));
    report["products"] = Products(backend->weights());
    return report;
  }
  for (const int batch : options.batches) {
    RETURN_IF_ERROR(driver.Prefill(batch, options.context).status());
    ASSIGN_OR_RETURN(const double seconds, driver.Decode(batch, options.context, options.steps));
    const double context = options.context + options.steps / 2.0;
    const double bytes = weight_bytes + kv_bytes * context * batch;
    const double floor = std::max(bytes / ceilings.read_bytes_per_second,
                                  weight_flops * batch / ceilings.matrix_flops_per_second);
    report["decode"].push_back({{"batch", batch},
                                {"context", options.context},
                                {"ms", seconds * 1e3},
                                {"floor_ms", floor * 1e3},
                                {"share_of_floor", floor / seconds},
                                {"tokens_per_second", batch / seconds}});
    if (options.gaps) {
      ASSIGN_OR_RETURN(report["decode"].back()["idle_gap_us"],
                       MeasureGaps(&driver, batch, options));
    }
    if (options.adjust || options.logprobs >= 0) {
      ASSIGN_OR_RETURN(report["decode"].back()["asked"],
                       MeasureAsked(&driver, batch, seconds, config.vocab_size, options));
    }
  }
  if (options.prefill > 0) {
    RETURN_IF_ERROR(driver.Prefill(1, options.prefill).status());
    ASSIGN_OR_RETURN(const double seconds, driver.Prefill(1, options.prefill));
    const double tokens = options.prefill;
    const double head = 2.0 * config.hidden_size * config.vocab_size;  // of one row only
    const double flops = (2.0 * static_cast<double>(MatrixElements(config)) - head) * tokens +
                         2.0 * config.num_layers * config.q_size() * tokens * tokens;
    const double floor = flops / ceilings.matrix_flops_per_second;
    report["prefill"] = {{"tokens", options.prefill},
                         {"ms", seconds * 1e3},
                         {"floor_ms", floor * 1e3},
                         {"share_of_floor", floor / seconds}};
  }
  report["graph_steps"] = backend->counters().graph_steps;
  report["eager_steps"] = backend->counters().eager_steps;
  return report;
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Decode and prefill steps on random weights of a named shape");
  app.add_option("--model", options.model, "a named shape");
  app.add_option("--type", options.type, "fp16 or bf16");
  app.add_option("--batch", options.batches, "sequences at once")->delimiter(',');
  app.add_option("--context", options.context, "tokens before decoding");
  app.add_option("--steps", options.steps, "decode steps measured")->check(CLI::Range(2, 100000));
  app.add_option("--prefill", options.prefill, "tokens of the prefill measured; 0: none");
  app.add_flag("!--no-graphs", options.graphs, "enqueue every step kernel by kernel");
  app.add_flag("--deterministic", options.deterministic, "the same bits whatever the batch");
  app.add_option("--int4", options.int4, "layers in 4 bits, in groups of so many inputs; -1: all")
      ->check(CLI::IsMember({-1, 32, 64, 128}));
  app.add_flag("--asymmetric", options.asymmetric, "with --int4: a zero point for every group");
  app.add_flag("--gaps", options.gaps, "decode again, timing what lies between the graphs");
  app.add_flag("--adjust", options.adjust,
               "decode again with two penalties and 32 biases for every sequence");
  app.add_option("--logprobs", options.logprobs,
                 "decode again with the log-probabilities of so many likeliest tokens")
      ->check(CLI::Range(0, SamplingParams::kMaxLogprobs));
  app.add_option("--profile", options.profile, "only one step, between a profiler's marks")
      ->check(CLI::IsMember({"decode", "prefill"}));
  CLI11_PARSE(app, argc, argv);
  const absl::StatusOr<nlohmann::json> report = RunBench(options);
  if (!report.ok()) {
    std::cerr << report.status() << "\n";
    return 1;
  }
  std::cout << report->dump(2) << "\n";
  return 0;
}

}  // namespace
}  // namespace ferrite

int main(int argc, char** argv) { return ferrite::Main(argc, argv); }

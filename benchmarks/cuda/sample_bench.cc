// Times sampling on the current GPU, beside the floor of reading every logit once. Prints one JSON
// object. The logits are random; where they fit the L2 they lie there, as behind the head's
// product.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "benchmarks/cuda/device_ceilings.h"
#include "benchmarks/cuda/time_graph.h"
#include "cuda/cuda_status.h"
#include "cuda/device_buffer.h"
#include "cuda/kernels/logprobs.h"
#include "cuda/kernels/sample.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

constexpr int kCalls = 20;  // a replay

struct Mode {
  const char* name;
  GpuSamplingParams params;
};

std::vector<Mode> Modes() {
  const auto make = [](const char* name, float temperature, int32_t top_k, float top_p,
                       float min_p) {
    Mode mode{name, {}};
    mode.params.temperature = temperature;
    mode.params.top_k = top_k;
    mode.params.top_p = top_p;
    mode.params.min_p = min_p;
    return mode;
  };
  return {make("greedy", 0, 0, 1, 0),
          make("temperature 1", 1, 0, 1, 0),
          make("temperature 0.7, top_p 0.9", 0.7f, 0, 0.9f, 0),
          make("temperature 1, top_k 50", 1, 50, 1, 0),
          make("temperature 1, min_p 0.05", 1, 0, 1, 0.05f),
          make("temperature 0.8, top_k 40, top_p 0.95, min_p 0.05", 0.8f, 40, 0.95f, 0.05f)};
}

class Bench {
 public:
  absl::Status Init(int32_t rows, int32_t vocab_size);

  // Median microseconds of sampling the rows.
  absl::StatusOr<double> TimeSampling(const Mode& mode);
  // The same of their log-probabilities, as many as SamplingParams::num_logprobs says.
  absl::StatusOr<double> TimeLogprobs(int32_t num_logprobs);

 private:
  absl::Status SetParams(GpuSamplingParams params);

  int32_t rows_ = 0;
  int32_t vocab_size_ = 0;
  cudaStream_t stream_ = nullptr;
  DeviceBuffer<float> logits_;
  DeviceBuffer<GpuSamplingParams> params_;
  DeviceBuffer<int32_t> slots_;
  DeviceBuffer<int32_t> output_indices_;
  DeviceBuffer<int32_t> tokens_;
  DeviceMemory workspace_;
  DeviceBuffer<GpuRowLogprobs> logprobs_;
  DeviceMemory logprobs_workspace_;
};

absl::Status Bench::Init(int32_t rows, int32_t vocab_size) {
  rows_ = rows;
  vocab_size_ = vocab_size;
  if (stream_ == nullptr) {
    FERRITE_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  const int64_t size = int64_t{rows} * vocab_size;
  ASSIGN_OR_RETURN(logits_, DeviceBuffer<float>::Create(0, size, "logits"));
  ASSIGN_OR_RETURN(params_, DeviceBuffer<GpuSamplingParams>::Create(0, rows, "parameters"));
  ASSIGN_OR_RETURN(slots_, DeviceBuffer<int32_t>::Create(0, rows, "slots"));
  ASSIGN_OR_RETURN(output_indices_, DeviceBuffer<int32_t>::Create(0, rows, "indices"));
  ASSIGN_OR_RETURN(tokens_, DeviceBuffer<int32_t>::Create(0, rows, "tokens"));
  ASSIGN_OR_RETURN(workspace_, DeviceMemory::Create(
                                   0, static_cast<int64_t>(SampleWorkspaceBytes(rows, vocab_size)),
                                   "workspace"));
  ASSIGN_OR_RETURN(logprobs_, DeviceBuffer<GpuRowLogprobs>::Create(0, rows, "logprobs"));
  ASSIGN_OR_RETURN(
      logprobs_workspace_,
      DeviceMemory::Create(0, static_cast<int64_t>(LogprobsWorkspaceBytes(rows, vocab_size)),
                           "workspace"));
  FERRITE_RETURN_IF_CUDA_ERROR(
      cudaMemset(logprobs_workspace_.data(), 0, logprobs_workspace_.bytes()));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMemset(tokens_.data(), 0, tokens_.bytes()));
  std::mt19937 generator(1);
  std::normal_distribution<float> normal(0, 2.5f);
  std::vector<float> logits(size);
  for (float& logit : logits) {
    logit = normal(generator);
  }
  std::vector<int32_t> counting(rows);
  for (int32_t row = 0; row < rows; ++row) {
    counting[row] = row;
  }
  FERRITE_RETURN_IF_CUDA_ERROR(
      cudaMemcpy(logits_.data(), logits.data(), logits_.bytes(), cudaMemcpyHostToDevice));
  FERRITE_RETURN_IF_CUDA_ERROR(
      cudaMemcpy(slots_.data(), counting.data(), slots_.bytes(), cudaMemcpyHostToDevice));
  return CudaStatus(
      cudaMemcpy(output_indices_.data(), counting.data(), slots_.bytes(), cudaMemcpyHostToDevice),
      "cudaMemcpy");
}

absl::Status Bench::SetParams(GpuSamplingParams params) {
  std::vector<GpuSamplingParams> all(rows_, params);
  for (int32_t row = 0; row < rows_; ++row) {
    all[row].seed = row;
  }
  return CudaStatus(cudaMemcpy(params_.data(), all.data(), params_.bytes(), cudaMemcpyHostToDevice),
                    "cudaMemcpy");
}

absl::StatusOr<double> Bench::TimeSampling(const Mode& mode) {
  RETURN_IF_ERROR(SetParams(mode.params));
  SampleArguments arguments;
  arguments.logits = logits_.data();
  arguments.num_rows = rows_;
  arguments.vocab_size = vocab_size_;
  arguments.params = params_.data();
  arguments.row_slots = slots_.data();
  arguments.output_indices = output_indices_.data();
  arguments.tokens = tokens_.data();
  arguments.workspace = workspace_.data();
  return TimeGraph(
      stream_, [&] { return CudaStatus(SampleTokens(arguments, stream_), "SampleTokens"); },
      kCalls);
}

absl::StatusOr<double> Bench::TimeLogprobs(int32_t num_logprobs) {
  GpuSamplingParams params;
  params.num_logprobs = num_logprobs;
  RETURN_IF_ERROR(SetParams(params));
  LogprobsArguments arguments;
  arguments.logits = logits_.data();
  arguments.num_rows = rows_;
  arguments.max_rows = rows_;
  arguments.vocab_size = vocab_size_;
  arguments.params = params_.data();
  arguments.row_slots = slots_.data();
  arguments.tokens = tokens_.data();
  arguments.out = logprobs_.data();
  arguments.workspace = logprobs_workspace_.data();
  return TimeGraph(
      stream_, [&] { return CudaStatus(ComputeLogprobs(arguments, stream_), "ComputeLogprobs"); },
      kCalls);
}

absl::Status Run(int32_t vocab_size, const std::vector<int32_t>& rows_list) {
  ASSIGN_OR_RETURN(const DeviceCeilings ceilings, MeasureDeviceCeilings());
  nlohmann::ordered_json json;
  json["read_bytes_per_second"] = ceilings.read_bytes_per_second;
  json["vocab_size"] = vocab_size;
  Bench bench;
  for (const int32_t rows : rows_list) {
    RETURN_IF_ERROR(bench.Init(rows, vocab_size));
    const double floor = 4e6 * rows * vocab_size / ceilings.read_bytes_per_second;
    const auto report = [&](const char* name, double us) {
      json["runs"].push_back({{"rows", rows}, {"mode", name}, {"us", us}, {"floor_us", floor}});
      std::fprintf(stderr, "%4d rows, %-50s %8.2f us; floor %.2f us\n", rows, name, us, floor);
    };
    for (const Mode& mode : Modes()) {
      ASSIGN_OR_RETURN(const double us, bench.TimeSampling(mode));
      report(mode.name, us);
    }
    for (const int32_t asked : {-1, 0, 5, 20}) {
      ASSIGN_OR_RETURN(const double us, bench.TimeLogprobs(asked));
      report(("logprobs " + std::to_string(asked)).c_str(), us);
    }
  }
  std::cout << json.dump(2) << std::endl;
  return absl::OkStatus();
}

}  // namespace
}  // namespace ferrite

int main(int argc, char** argv) {
  CLI::App app("Times sampling on the current GPU");
  int32_t vocab_size = 128256;
  std::vector<int32_t> rows = {1, 8, 32, 256};
  app.add_option("--vocab", vocab_size, "Vocabulary");
  app.add_option("--rows", rows, "Rows sampled together")->delimiter(',');
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = ferrite::Run(vocab_size, rows);
  if (!status.ok()) {
    std::cerr << status << std::endl;
    return 1;
  }
  return 0;
}

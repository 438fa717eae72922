// The 4-bit products of tens to hundreds of rows at the shapes of a known model, by the kernel and
// by dequantising for cuBLAS, each beside cuBLAS on 16-bit weights. Every launch reads weights of
// its own, so that L2 does not flatter. Prints one JSON object, and a table on stderr.
#include "cuda/kernels/int4_matmul.h"

#include <cublas_v2.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <vector>

#include "benchmarks/cuda/time_graph.h"
#include "cuda/cuda_status.h"
#include "cuda/kernels/fill_random.h"
#include "cuda/kernels/gptq.h"
#include "cuda/product_ways.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

constexpr size_t kWeightBytes = size_t{3} << 30;  // of either kind
constexpr size_t kActivationBytes = size_t{64} << 20;
constexpr size_t kCublasWorkspaceBytes = size_t{32} << 20;
constexpr int32_t kGroupSize = 128;
constexpr int32_t kMaxInputs = 14336;
constexpr int32_t kMaxOutputs = 28672;

struct Product {
  const char* name;
  int32_t outputs;
  int32_t inputs;
  double Values() const { return 1.0 * outputs * inputs; }
  // Weights of that many bytes each, enough to outlast L2 by far.
  int Copies(double bytes) const { return std::clamp(static_cast<int>(1e9 / bytes), 6, 100); }
};

// Of a layer of Llama-3.1-8B.
constexpr Product kProducts[] = {
    {"qkv", 6144, 4096}, {"o", 4096, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}};

class Bench {
 public:
  absl::Status Init(int32_t max_rows);
  // Microseconds of one product.
  absl::StatusOr<double> TimeInt4(const Product& product, int32_t rows);
  absl::StatusOr<double> TimeDequantized(const Product& product, int32_t rows);
  absl::StatusOr<double> TimeCublas(const Product& product, int32_t rows);

 private:
  Int4Weight Weight(const Product& product, int copy) const;
  // y's columns from `first` on = x of W, outputs by inputs in 16 bits.
  absl::Status Multiply(const Product& product, int32_t rows, const void* weight, int64_t first,
                        int64_t outputs) const;

  cudaStream_t stream_ = nullptr;
  cublasHandle_t cublas_ = nullptr;
  char* weights_ = nullptr;  // fp16, and as tiles any bits will do
  uint16_t* scales_ = nullptr;
  char* x_ = nullptr;
  uint16_t* y_ = nullptr;
  void* dequantized_ = nullptr;
  void* workspace_ = nullptr;
};

absl::Status Bench::Init(int32_t max_rows) {
  int32_t multiprocessors = 0;
  FERRITE_RETURN_IF_CUDA_ERROR(
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  const size_t workspace =
      Int4MatmulWorkspaceBytes(max_rows, kMaxInputs, kMaxOutputs, multiprocessors);
  FERRITE_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&weights_, kWeightBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&scales_, kWeightBytes / 32));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&x_, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&y_, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&dequantized_, kMaxDequantizedBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&workspace_, workspace));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMemset(workspace_, 0, workspace));
  FERRITE_RETURN_IF_CUDA_ERROR(
      FillRandom(GpuType::kFp16, weights_, kWeightBytes / 2, 0.0f, 0.02f, 1, stream_));
  FERRITE_RETURN_IF_CUDA_ERROR(
      FillRandom(GpuType::kFp16, scales_, kWeightBytes / 64, 0.0f, 0.01f, 2, stream_));
  FERRITE_RETURN_IF_CUDA_ERROR(
      FillRandom(GpuType::kFp16, x_, kActivationBytes / 2, 0.0f, 1.0f, 3, stream_));
  FERRITE_RETURN_IF_CUBLAS_ERROR(cublasCreate(&cublas_));
  FERRITE_RETURN_IF_CUBLAS_ERROR(cublasSetStream(cublas_, stream_));
  void* cublas_workspace = nullptr;
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&cublas_workspace, kCublasWorkspaceBytes));
  FERRITE_RETURN_IF_CUBLAS_ERROR(
      cublasSetWorkspace(cublas_, cublas_workspace, kCublasWorkspaceBytes));
  return CudaStatus(cudaDeviceSynchronize(), "filling buffers");
}

Int4Weight Bench::Weight(const Product& product, int copy) const {
  const auto bytes = static_cast<size_t>(product.Values() / 2);
  return {.tiles = reinterpret_cast<const uint32_t*>(weights_ + copy * bytes),
          .scales = scales_ + copy * (bytes * 2 / kGroupSize),
          .inputs = product.inputs,
          .outputs = product.outputs,
          .group_size = kGroupSize};
}

absl::Status Bench::Multiply(const Product& product, int32_t rows, const void* weight,
                             int64_t first, int64_t outputs) const {
  const float one = 1;
  const float zero = 0;
  return CublasStatus(cublasGemmEx(cublas_, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(outputs),
                                   rows, product.inputs, &one, weight, CUDA_R_16F, product.inputs,
                                   x_, CUDA_R_16F, product.inputs, &zero, y_ + first, CUDA_R_16F,
                                   product.outputs, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                      "cublasGemmEx");
}

absl::StatusOr<double> Bench::TimeInt4(const Product& product, int32_t rows) {
  const int copies = product.Copies(product.Values() / 2);
  ASSIGN_OR_RETURN(const double microseconds, TimeGraph(stream_, [&]() -> absl::Status {
                     for (int i = 0; i < copies; ++i) {
                       FERRITE_RETURN_IF_CUDA_ERROR(Int4Matmul({.type = GpuType::kFp16,
                                                                .rows = rows,
                                                                .x = x_,
                                                                .weight = Weight(product, i),
                                                                .y = y_,
                                                                .y_stride = product.outputs,
                                                                .workspace = workspace_},
                                                               stream_));
                     }
                     return absl::OkStatus();
                   }));
  return microseconds / copies;
}

// As Products does.
absl::StatusOr<double> Bench::TimeDequantized(const Product& product, int32_t rows) {
  const int copies = product.Copies(product.Values() / 2);
  const int64_t step = DequantizedOutputs(product.inputs, product.outputs);
  ASSIGN_OR_RETURN(const double microseconds, TimeGraph(stream_, [&]() -> absl::Status {
                     for (int i = 0; i < copies; ++i) {
                       for (int64_t first = 0; first < product.outputs; first += step) {
                         const int64_t count = std::min(step, product.outputs - first);
                         FERRITE_RETURN_IF_CUDA_ERROR(DequantizeInt4(
                             Weight(product, i), static_cast<int32_t>(first),
                             static_cast<int32_t>(count), GpuType::kFp16, dequantized_, stream_));
                         RETURN_IF_ERROR(Multiply(product, rows, dequantized_, first, count));
                       }
                     }
                     return absl::OkStatus();
                   }));
  return microseconds / copies;
}

absl::StatusOr<double> Bench::TimeCublas(const Product& product, int32_t rows) {
  const auto bytes = static_cast<size_t>(product.Values() * 2);
  const int copies = product.Copies(static_cast<double>(bytes));
  ASSIGN_OR_RETURN(
      const double microseconds, TimeGraph(stream_, [&]() -> absl::Status {
        for (int i = 0; i < copies; ++i) {
          RETURN_IF_ERROR(Multiply(product, rows, weights_ + i * bytes, 0, product.outputs));
        }
        return absl::OkStatus();
      }));
  return microseconds / copies;
}

absl::Status Run(const std::vector<int32_t>& rows_list) {
  Bench bench;
  RETURN_IF_ERROR(bench.Init(*std::max_element(rows_list.begin(), rows_list.end())));
  nlohmann::ordered_json json;
  for (const int32_t rows : rows_list) {
    double sum = 0;
    double dequantized_sum = 0;
    double cublas_sum = 0;
    for (const Product& product : kProducts) {
      ASSIGN_OR_RETURN(const double us, bench.TimeInt4(product, rows));
      ASSIGN_OR_RETURN(const double dequantized_us, bench.TimeDequantized(product, rows));
      ASSIGN_OR_RETURN(const double cublas_us, bench.TimeCublas(product, rows));
      sum += us;
      dequantized_sum += dequantized_us;
      cublas_sum += cublas_us;
      const double bytes = product.Values() * (0.5 + 2.0 / kGroupSize);
      const double flops = 2 * product.Values() * rows;
      json["products"].push_back({{"product", product.name},
                                  {"outputs", product.outputs},
                                  {"inputs", product.inputs},
                                  {"rows", rows},
                                  {"us", us},
                                  {"dequantized_us", dequantized_us},
                                  {"cublas_us", cublas_us},
                                  {"ratio", us / cublas_us},
                                  {"bytes_per_second", 1e6 * bytes / us},
                                  {"flops_per_second", 1e6 * flops / us}});
      std::fprintf(stderr,
                   "%-8s rows %3d: %7.2f us, %6.0f GB/s, %4.0f TFLOP/s; dequantised %7.2f us; "
                   "cuBLAS %7.2f us, ratio %.2f\n",
                   product.name, rows, us, 1e-3 * bytes / us, 1e-6 * flops / us, dequantized_us,
                   cublas_us, us / cublas_us);
    }
    json["layers"].push_back({{"rows", rows},
                              {"us", sum},
                              {"dequantized_us", dequantized_sum},
                              {"cublas_us", cublas_sum},
                              {"ratio", sum / cublas_sum}});
    std::fprintf(stderr,
                 "all four rows %3d: %7.2f us; dequantised %7.2f us; cuBLAS %7.2f us, ratio %.2f\n",
                 rows, sum, dequantized_sum, cublas_sum, sum / cublas_sum);
  }
  std::cout << json.dump(2) << std::endl;
  return absl::OkStatus();
}

}  // namespace
}  // namespace ferrite

int main(int argc, char** argv) {
  CLI::App app("Times the 4-bit products of many rows on the current GPU");
  std::vector<int32_t> rows = {9, 16, 32, 64, 128, 256, 512};
  app.add_option("--rows", rows, "Rows of the activations")->delimiter(',');
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = ferrite::Run(rows);
  if (!status.ok()) {
    std::cerr << status << std::endl;
    return 1;
  }
  return 0;
}

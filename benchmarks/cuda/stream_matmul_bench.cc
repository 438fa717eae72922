// The weight-streaming products at the shapes of known models: each alone beside cuBLAS, and a
// whole token's chain of them in one CUDA graph. Every launch reads weights of its own, so that L2
// does not flatter. Prints one JSON object, and a table on stderr.
#include <cublas_v2.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "benchmarks/cuda/device_ceilings.h"
#include "benchmarks/cuda/time_graph.h"
#include "cuda/cuda_status.h"
#include "cuda/kernels/fill_random.h"
#include "cuda/kernels/stream_matmul.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

using Epilogue = StreamMatmulArguments::Epilogue;

constexpr size_t kWeightBytes = size_t{17} << 30;
constexpr size_t kActivationBytes = size_t{64} << 20;
constexpr size_t kCublasWorkspaceBytes = size_t{32} << 20;

struct Model {
  const char* name;
  int32_t layers;
  int32_t hidden;
  int32_t qkv;
  int32_t intermediate;
  int32_t vocab;
};
constexpr Model kModels[] = {{"llama-3.1-8b", 32, 4096, 6144, 14336, 128256},
                             {"llama-3.2-1b", 16, 2048, 3072, 8192, 128256}};

struct Product {
  const char* name;
  int32_t outputs;
  int32_t inputs;
  bool norm;  // its inputs are the residual's norm
  Epilogue epilogue;
  double Bytes() const { return 2.0 * outputs * inputs; }
};

std::vector<Product> LayerProducts(const Model& model) {
  const int32_t heads = model.hidden;  // num_heads * head_dim, in both models
  return {{"qkv", model.qkv, model.hidden, true, Epilogue::kStore},
          {"o", model.hidden, heads, false, Epilogue::kAdd},
          {"gate_up", 2 * model.intermediate, model.hidden, true, Epilogue::kSiluMul},
          {"down", model.hidden, model.intermediate, false, Epilogue::kAdd}};
}

Product Head(const Model& model) {
  return {"lm_head", model.vocab, model.hidden, true, Epilogue::kFp32};
}

class Bench {
 public:
  absl::Status Init();

  // Microseconds a product of which each of several reads other weights. `norm` takes its inputs
  // from the residual, else they are in 16 bits.
  absl::StatusOr<double> TimeProduct(const Product& product, int32_t rows, bool norm);
  absl::StatusOr<double> TimeCublas(const Product& product, int32_t rows);

  // Microseconds of all of a token's products. `norm` as above.
  absl::StatusOr<double> TimeChain(const Model& model, int32_t rows, bool norm);

 private:
  // Median microseconds of a replay of what `enqueue` puts on the stream.
  StreamMatmulArguments Arguments(const Product& product, const char* weight, int32_t rows,
                                  bool norm) const;
  absl::Status Enqueue(const std::vector<StreamMatmulArguments>& products);

  // Distinct weights of a product that take about 3 GB.
  static int Copies(const Product& product) {
    return std::clamp(static_cast<int>(3e9 / product.Bytes()), 6, 100);
  }
  const char* Weight(const Product& product, int copy) const {
    return weights_ + copy * static_cast<size_t>(product.Bytes());
  }

  cudaStream_t stream_ = nullptr;
  cublasHandle_t cublas_ = nullptr;
  char* weights_ = nullptr;
  char* x_ = nullptr;
  char* y_ = nullptr;
  float* residual_ = nullptr;
  float* norm_ = nullptr;
  float* partials_ = nullptr;
  int32_t* counters_ = nullptr;
};

absl::Status Bench::Init() {
  FERRITE_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&weights_, kWeightBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&x_, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&y_, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&residual_, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&norm_, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&partials_, 2 * kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&counters_, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMemset(counters_, 0, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMemset(residual_, 0, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(
      FillRandom(GpuType::kFp16, weights_, kWeightBytes / 2, 0.0f, 0.02f, 1, stream_));
  FERRITE_RETURN_IF_CUDA_ERROR(
      FillRandom(GpuType::kFp16, x_, kActivationBytes / 2, 0.0f, 1.0f, 2, stream_));
  std::vector<float> ones(kActivationBytes / sizeof(float), 1.0f);
  FERRITE_RETURN_IF_CUDA_ERROR(
      cudaMemcpy(norm_, ones.data(), kActivationBytes, cudaMemcpyHostToDevice));
  FERRITE_RETURN_IF_CUDA_ERROR(
      cudaMemcpy(residual_, ones.data(), kActivationBytes, cudaMemcpyHostToDevice));
  FERRITE_RETURN_IF_CUBLAS_ERROR(cublasCreate(&cublas_));
  FERRITE_RETURN_IF_CUBLAS_ERROR(cublasSetStream(cublas_, stream_));
  void* workspace = nullptr;
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&workspace, kCublasWorkspaceBytes));
  FERRITE_RETURN_IF_CUBLAS_ERROR(cublasSetWorkspace(cublas_, workspace, kCublasWorkspaceBytes));
  return CudaStatus(cudaDeviceSynchronize(), "filling buffers");
}

StreamMatmulArguments Bench::Arguments(const Product& product, const char* weight, int32_t rows,
                                       bool norm) const {
  const bool adds = product.epilogue == Epilogue::kAdd;
  return {.type = GpuType::kFp16,
          .rows = rows,
          .inputs = product.inputs,
          .outputs = product.outputs,
          .x = norm ? nullptr : x_,
          .residual = norm ? residual_ : nullptr,
          .norm_weight = norm ? norm_ : nullptr,
          .epsilon = 1e-5f,
          .weight = weight,
          .epilogue = product.epilogue,
          .y = adds ? static_cast<void*>(residual_) : y_,
          .partials = partials_,
          .counters = counters_};
}

absl::Status Bench::Enqueue(const std::vector<StreamMatmulArguments>& products) {
  for (const StreamMatmulArguments& product : products) {
    FERRITE_RETURN_IF_CUDA_ERROR(StreamMatmul(product, stream_));
  }
  return absl::OkStatus();
}

absl::StatusOr<double> Bench::TimeProduct(const Product& product, int32_t rows, bool norm) {
  std::vector<StreamMatmulArguments> products;
  for (int i = 0; i < Copies(product); ++i) {
    products.push_back(Arguments(product, Weight(product, i), rows, norm));
  }
  ASSIGN_OR_RETURN(const double microseconds,
                   TimeGraph(stream_, [&] { return Enqueue(products); }));
  return microseconds / products.size();
}

absl::StatusOr<double> Bench::TimeCublas(const Product& product, int32_t rows) {
  const int copies = Copies(product);
  const float one = 1;
  const float zero = 0;
  ASSIGN_OR_RETURN(
      const double microseconds, TimeGraph(stream_, [&]() -> absl::Status {
        for (int i = 0; i < copies; ++i) {
          FERRITE_RETURN_IF_CUBLAS_ERROR(cublasGemmEx(
              cublas_, CUBLAS_OP_T, CUBLAS_OP_N, product.outputs, rows, product.inputs, &one,
              Weight(product, i), CUDA_R_16F, product.inputs, x_, CUDA_R_16F, product.inputs, &zero,
              y_, CUDA_R_16F, product.outputs, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
        }
        return absl::OkStatus();
      }));
  return microseconds / copies;
}

absl::StatusOr<double> Bench::TimeChain(const Model& model, int32_t rows, bool norm) {
  std::vector<StreamMatmulArguments> products;
  const char* weight = weights_;
  for (int32_t layer = 0; layer < model.layers; ++layer) {
    for (const Product& product : LayerProducts(model)) {
      products.push_back(Arguments(product, weight, rows, norm && product.norm));
      weight += static_cast<size_t>(product.Bytes());
    }
  }
  products.push_back(Arguments(Head(model), weight, rows, norm));
  return TimeGraph(stream_, [&] { return Enqueue(products); });
}

double ChainBytes(const Model& model) {
  double bytes = Head(model).Bytes();
  for (const Product& product : LayerProducts(model)) {
    bytes += model.layers * product.Bytes();
  }
  return bytes;
}

absl::Status Run(const std::vector<int32_t>& rows_list, bool chain_only) {
  Bench bench;
  RETURN_IF_ERROR(bench.Init());
  ASSIGN_OR_RETURN(const DeviceCeilings ceilings, MeasureDeviceCeilings());
  nlohmann::ordered_json json;
  json["read_bytes_per_second"] = ceilings.read_bytes_per_second;
  json["matrix_flops_per_second"] = ceilings.matrix_flops_per_second;
  std::fprintf(stderr, "read %.2f TB/s, matrix %.0f TFLOP/s; floors are of the bytes read\n",
               ceilings.read_bytes_per_second * 1e-12, ceilings.matrix_flops_per_second * 1e-12);
  const auto floor_us = [&](double bytes) { return 1e6 * bytes / ceilings.read_bytes_per_second; };
  for (const Model& model : kModels) {
    std::vector<Product> products = LayerProducts(model);
    products.push_back(Head(model));
    for (const Product& product : chain_only ? std::vector<Product>() : products) {
      for (const int32_t rows : rows_list) {
        ASSIGN_OR_RETURN(const double plain, bench.TimeProduct(product, rows, false));
        double normed = 0;
        if (product.norm) {
          ASSIGN_OR_RETURN(normed, bench.TimeProduct(product, rows, true));
        }
        ASSIGN_OR_RETURN(const double cublas, bench.TimeCublas(product, rows));
        const double floor = floor_us(product.Bytes());
        json["products"].push_back({{"model", model.name},
                                    {"product", product.name},
                                    {"outputs", product.outputs},
                                    {"inputs", product.inputs},
                                    {"rows", rows},
                                    {"us", plain},
                                    {"us_with_norm", product.norm ? normed : plain},
                                    {"cublas_us", cublas},
                                    {"floor_us", floor},
                                    {"bytes_per_second", 1e6 * product.Bytes() / plain},
                                    {"share_of_floor", floor / plain}});
        std::fprintf(stderr,
                     "%-12s %-8s rows %2d: %7.2f us, %.2f TB/s, %3.0f %%; with norm %7.2f us; "
                     "cuBLAS %7.2f us\n",
                     model.name, product.name, rows, plain, 1e-6 * product.Bytes() / plain,
                     100 * floor / plain, normed, cublas);
      }
    }
    for (const int32_t rows : rows_list) {
      ASSIGN_OR_RETURN(const double plain, bench.TimeChain(model, rows, false));
      ASSIGN_OR_RETURN(const double normed, bench.TimeChain(model, rows, true));
      const double floor = floor_us(ChainBytes(model));
      json["chains"].push_back({{"model", model.name},
                                {"rows", rows},
                                {"ms", 1e-3 * plain},
                                {"ms_with_norm", 1e-3 * normed},
                                {"floor_ms", 1e-3 * floor},
                                {"share_of_floor", floor / plain},
                                {"share_of_floor_with_norm", floor / normed}});
      std::fprintf(stderr,
                   "%-12s chain    rows %2d: %.3f ms, %.1f %% of the floor; with norm %.3f ms, "
                   "%.1f %%; floor %.3f ms\n",
                   model.name, rows, 1e-3 * plain, 100 * floor / plain, 1e-3 * normed,
                   100 * floor / normed, 1e-3 * floor);
    }
  }
  std::cout << json.dump(2) << std::endl;
  return absl::OkStatus();
}

}  // namespace
}  // namespace ferrite

int main(int argc, char** argv) {
  CLI::App app("Times the weight-streaming products on the current GPU");
  std::vector<int32_t> rows = {1, 2, 4, 8, 16};
  bool chain_only = false;
  app.add_option("--rows", rows, "Rows of the activations")->delimiter(',');
  app.add_flag("--chain-only", chain_only, "Only whole tokens, not product by product");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = ferrite::Run(rows, chain_only);
  if (!status.ok()) {
    std::cerr << status << std::endl;
    return 1;
  }
  return 0;
}

// The 4-bit weight-streaming products at the shapes of known models: each alone, and the chain of
// all layers' in one CUDA graph. Every launch reads weights of its own, so that L2 does not
// flatter. Prints one JSON object, and a table on stderr.
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
#include "cuda/kernels/stream_int4.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

using Epilogue = StreamMatmulArguments::Epilogue;

constexpr size_t kTileBytes = size_t{4} << 30;
constexpr size_t kScaleBytes = size_t{1} << 30;
constexpr size_t kActivationBytes = size_t{64} << 20;

struct Model {
  const char* name;
  int32_t layers;
  int32_t hidden;
  int32_t qkv;
  int32_t intermediate;
};
constexpr Model kModels[] = {{"llama-3.1-8b", 32, 4096, 6144, 14336},
                             {"llama-3.2-1b", 16, 2048, 3072, 8192}};

struct Options {
  std::vector<int32_t> rows = {1, 2, 4, 8};
  int32_t group_size = 128;
  bool zeros = false;
  bool bf16 = false;
  bool chain_only = false;
};

struct Product {
  const char* name;
  int32_t outputs;
  int32_t inputs;
  bool norm;  // its inputs are the residual's norm
  Epilogue epilogue;
};

std::vector<Product> LayerProducts(const Model& model) {
  const int32_t heads = model.hidden;  // num_heads * head_dim, in both models
  return {{"qkv", model.qkv, model.hidden, true, Epilogue::kStore},
          {"o", model.hidden, heads, false, Epilogue::kAdd},
          {"gate_up", 2 * model.intermediate, model.hidden, true, Epilogue::kSiluMul},
          {"down", model.hidden, model.intermediate, false, Epilogue::kAdd}};
}

// Where the next weight's parts lie, in bytes.
struct Offsets {
  size_t tiles = 0;
  size_t scales = 0;
  size_t zeros = 0;
};

struct Launch {
  StreamMatmulArguments arguments;
  Int4Weight weight;
};

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options) {}
  absl::Status Init();

  double Bytes(const Product& product) const {
    const double weights = 1.0 * product.outputs * product.inputs;
    return weights / 2 + weights / options_.group_size * (options_.zeros ? 3 : 2);
  }
  // Microseconds a product of which each of several reads other weights. `norm` takes its inputs
  // from the residual, else they are in 16 bits.
  absl::StatusOr<double> TimeProduct(const Product& product, int32_t rows, bool norm);
  // Microseconds of all layers' products. `norm` as above.
  absl::StatusOr<double> TimeChain(const Model& model, int32_t rows, bool norm);

 private:
  // Median microseconds of a replay of those products, in a graph.
  absl::Status Enqueue(const std::vector<Launch>& products);
  // Moves `offsets` past the product's weight.
  Launch Make(const Product& product, int32_t rows, bool norm, Offsets* offsets) const;

  Options options_;
  cudaStream_t stream_ = nullptr;
  char* tiles_ = nullptr;
  char* scales_ = nullptr;
  char* zeros_ = nullptr;
  char* x_ = nullptr;
  char* y_ = nullptr;
  float* residual_ = nullptr;
  float* norm_ = nullptr;
  float* partials_ = nullptr;
  int32_t* counters_ = nullptr;
};

absl::Status Bench::Init() {
  FERRITE_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&tiles_, kTileBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&scales_, kScaleBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&zeros_, kScaleBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&x_, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&y_, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&residual_, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&norm_, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&partials_, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMalloc(&counters_, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMemset(counters_, 0, kActivationBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMemset(zeros_, 7, kScaleBytes));
  FERRITE_RETURN_IF_CUDA_ERROR(
      FillRandom(GpuType::kFp16, tiles_, kTileBytes / 2, 0.0f, 1.0f, 1, stream_));
  FERRITE_RETURN_IF_CUDA_ERROR(
      FillRandom(GpuType::kFp16, scales_, kScaleBytes / 2, 0.0f, 0.004f, 2, stream_));
  FERRITE_RETURN_IF_CUDA_ERROR(
      FillRandom(GpuType::kFp16, x_, kActivationBytes / 2, 0.0f, 1.0f, 3, stream_));
  std::vector<float> ones(kActivationBytes / sizeof(float), 1.0f);
  for (float* to : {norm_, residual_}) {
    FERRITE_RETURN_IF_CUDA_ERROR(
        cudaMemcpy(to, ones.data(), kActivationBytes, cudaMemcpyHostToDevice));
  }
  return CudaStatus(cudaDeviceSynchronize(), "filling buffers");
}

absl::Status Bench::Enqueue(const std::vector<Launch>& products) {
  for (const Launch& product : products) {
    FERRITE_RETURN_IF_CUDA_ERROR(StreamInt4(product.arguments, product.weight, stream_));
  }
  return absl::OkStatus();
}

Launch Bench::Make(const Product& product, int32_t rows, bool norm, Offsets* offsets) const {
  const bool adds = product.epilogue == Epilogue::kAdd;
  Launch launch;
  launch.arguments = {.type = options_.bf16 ? GpuType::kBf16 : GpuType::kFp16,
                      .rows = rows,
                      .x = norm ? nullptr : x_,
                      .residual = norm ? residual_ : nullptr,
                      .norm_weight = norm ? norm_ : nullptr,
                      .epsilon = 1e-5f,
                      .epilogue = product.epilogue,
                      .y = adds ? static_cast<void*>(residual_) : y_,
                      .partials = partials_,
                      .counters = counters_};
  launch.weight = {
      .tiles = reinterpret_cast<const uint32_t*>(tiles_ + offsets->tiles),
      .scales = reinterpret_cast<const uint16_t*>(scales_ + offsets->scales),
      .zeros = options_.zeros ? reinterpret_cast<const uint8_t*>(zeros_ + offsets->zeros) : nullptr,
      .inputs = product.inputs,
      .outputs = product.outputs,
      .group_size = options_.group_size};
  const size_t weights = size_t{1} * product.outputs * product.inputs;
  offsets->tiles += weights / 2;
  offsets->scales += weights / options_.group_size * 2;
  offsets->zeros += weights / options_.group_size;
  return launch;
}

absl::StatusOr<double> Bench::TimeProduct(const Product& product, int32_t rows, bool norm) {
  const int copies = std::clamp(static_cast<int>(2e9 / Bytes(product)), 6, 100);
  std::vector<Launch> products;
  Offsets offsets;
  for (int i = 0; i < copies; ++i) {
    products.push_back(Make(product, rows, norm, &offsets));
  }
  ASSIGN_OR_RETURN(const double microseconds,
                   TimeGraph(stream_, [&] { return Enqueue(products); }));
  return microseconds / copies;
}

absl::StatusOr<double> Bench::TimeChain(const Model& model, int32_t rows, bool norm) {
  std::vector<Launch> products;
  Offsets offsets;
  for (int32_t layer = 0; layer < model.layers; ++layer) {
    for (const Product& product : LayerProducts(model)) {
      products.push_back(Make(product, rows, norm && product.norm, &offsets));
    }
  }
  return TimeGraph(stream_, [&] { return Enqueue(products); });
}

absl::Status Run(const Options& options) {
  Bench bench(options);
  RETURN_IF_ERROR(bench.Init());
  ASSIGN_OR_RETURN(const DeviceCeilings ceilings, MeasureDeviceCeilings());
  nlohmann::ordered_json json;
  json["read_bytes_per_second"] = ceilings.read_bytes_per_second;
  json["group_size"] = options.group_size;
  json["zeros"] = options.zeros;
  json["type"] = options.bf16 ? "bf16" : "fp16";
  std::fprintf(stderr, "read %.2f TB/s; floors are of the bytes read\n",
               ceilings.read_bytes_per_second * 1e-12);
  const auto floor_us = [&](double bytes) { return 1e6 * bytes / ceilings.read_bytes_per_second; };
  for (const Model& model : kModels) {
    const std::vector<Product> products = LayerProducts(model);
    for (const Product& product : options.chain_only ? std::vector<Product>() : products) {
      for (const int32_t rows : options.rows) {
        ASSIGN_OR_RETURN(const double plain, bench.TimeProduct(product, rows, false));
        double normed = plain;
        if (product.norm) {
          ASSIGN_OR_RETURN(normed, bench.TimeProduct(product, rows, true));
        }
        const double bytes = bench.Bytes(product);
        json["products"].push_back({{"model", model.name},
                                    {"product", product.name},
                                    {"outputs", product.outputs},
                                    {"inputs", product.inputs},
                                    {"rows", rows},
                                    {"us", plain},
                                    {"us_with_norm", normed},
                                    {"floor_us", floor_us(bytes)},
                                    {"bytes_per_second", 1e6 * bytes / plain},
                                    {"share_of_floor", floor_us(bytes) / plain}});
        std::fprintf(stderr, "%-12s %-8s rows %d: %6.2f us, %4.0f GB/s, %3.0f %%; norm %6.2f us\n",
                     model.name, product.name, rows, plain, 1e-3 * bytes / plain,
                     100 * floor_us(bytes) / plain, normed);
      }
    }
    double floor = 0;
    for (const Product& product : products) {
      floor += model.layers * floor_us(bench.Bytes(product));
    }
    for (const int32_t rows : options.rows) {
      ASSIGN_OR_RETURN(const double plain, bench.TimeChain(model, rows, false));
      ASSIGN_OR_RETURN(const double normed, bench.TimeChain(model, rows, true));
      json["chains"].push_back({{"model", model.name},
                                {"rows", rows},
                                {"ms", 1e-3 * plain},
                                {"ms_with_norm", 1e-3 * normed},
                                {"floor_ms", 1e-3 * floor},
                                {"share_of_floor", floor / plain},
                                {"share_of_floor_with_norm", floor / normed}});
      std::fprintf(stderr, "%-12s chain    rows %d: %.3f ms, %.1f %%; norm %.3f ms, %.1f %%\n",
                   model.name, rows, 1e-3 * plain, 100 * floor / plain, 1e-3 * normed,
                   100 * floor / normed);
    }
  }
  std::cout << json.dump(2) << std::endl;
  return absl::OkStatus();
}

}  // namespace
}  // namespace ferrite

int main(int argc, char** argv) {
  CLI::App app("Times the 4-bit weight-streaming products on the current GPU");
  ferrite::Options options;
  app.add_option("--rows", options.rows, "Rows of the activations, 1 to 8")->delimiter(',');
  app.add_option("--group-size", options.group_size, "Inputs that share a scale");
  app.add_flag("--zeros", options.zeros, "Zero points of their own");
  app.add_flag("--bf16", options.bf16, "Activations in bf16");
  app.add_flag("--chain-only", options.chain_only, "Only whole layers, not product by product");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = ferrite::Run(options);
  if (!status.ok()) {
    std::cerr << status << std::endl;
    return 1;
  }
  return 0;
}

// How fast the CPU backend multiplies: the products of a model's layers with random weights, layer
// after layer, so that weights come from memory as they do in a step. Prints one JSON object.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "cpu/matmul_engine.h"
#include "cpu/simd_ops.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

struct Options {
  int threads = 0;
  int layers = 30;
  int hidden = 576;
  int intermediate = 1536;
  int kv = 192;  // kv heads x head_dim
  bool bf16 = true;
  bool deterministic = false;
  std::vector<int> rows = {1, 2, 4, 8, 16, 32, 128, 512};
  int repeat = 5;
};

struct Product {
  std::string name;
  CpuLinear::Output output = CpuLinear::Output::kAssign;
  std::vector<std::unique_ptr<CpuLinear>> layers;
};

absl::StatusOr<std::unique_ptr<CpuLinear>> RandomWeight(MatmulEngine* engine, int outputs,
                                                        int inputs, std::mt19937* random) {
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(static_cast<size_t>(outputs) * inputs);
  for (uint16_t& value : values) {
    value = FloatToBf16(normal(*random));
  }
  const TensorView view{.name = "random",
                        .dtype = DType::kBF16,
                        .shape = {outputs, inputs},
                        .data = std::as_bytes(std::span(values))};
  const LinearTensors tensors{.weight = &view};
  return engine->Pack({&tensors, 1});
}

absl::Status Run(const Options& options) {
  using Clock = std::chrono::steady_clock;
  using Output = CpuLinear::Output;
  ThreadPool pool(options.threads > 0 ? options.threads : NumAvailableCpus());
  ASSIGN_OR_RETURN(auto engine,
                   MatmulEngine::Create(options.bf16 ? ComputeType::kBf16 : ComputeType::kFp32,
                                        options.deterministic, &pool));
  std::mt19937 random(1);
  std::vector<Product> products(4);
  const auto fill = [&](Product& product, const char* name, Output output, int outputs,
                        int inputs) -> absl::Status {
    product.name = name;
    product.output = output;
    ASSIGN_OR_RETURN(auto layer, RandomWeight(engine.get(), outputs, inputs, &random));
    product.layers.push_back(std::move(layer));
    return absl::OkStatus();
  };
  for (int layer = 0; layer < options.layers; ++layer) {
    RETURN_IF_ERROR(
        fill(products[0], "qkv", Output::kAssign, options.hidden + 2 * options.kv, options.hidden));
    RETURN_IF_ERROR(fill(products[1], "o", Output::kAdd, options.hidden, options.hidden));
    RETURN_IF_ERROR(
        fill(products[2], "gate_up", Output::kAssign, 2 * options.intermediate, options.hidden));
    RETURN_IF_ERROR(fill(products[3], "down", Output::kAdd, options.hidden, options.intermediate));
  }
  const int most_rows =
      *std::max_element(options.rows.begin(), options.rows.end()) + MatmulEngine::kRowPadding;
  const int widest = std::max(2 * options.intermediate, options.hidden + 2 * options.kv);
  // One buffer serves inputs of both types.
  std::vector<float> x(static_cast<size_t>(most_rows) * widest);
  std::vector<float> y(static_cast<size_t>(most_rows) * widest);
  std::normal_distribution<float> normal;
  for (float& value : x) {
    value = normal(random);
  }
  if (engine->input_type() == ComputeType::kBf16) {
    std::vector<uint16_t> narrow(x.size());
    std::transform(x.begin(), x.end(), narrow.begin(), FloatToBf16);
    std::memcpy(x.data(), narrow.data(), narrow.size() * sizeof(uint16_t));
  }

  nlohmann::json table = nlohmann::json::array();
  for (const int rows : options.rows) {
    std::map<std::string, double> best;
    for (int run = 0; run < options.repeat; ++run) {
      std::map<std::string, double> seconds;
      for (int layer = 0; layer < options.layers; ++layer) {
        for (const Product& product : products) {
          const auto begin = Clock::now();
          RETURN_IF_ERROR(product.layers[layer]->Run(x.data(), rows, y.data(), product.output));
          const double taken = std::chrono::duration<double>(Clock::now() - begin).count();
          seconds[product.name] += taken;
          seconds["all"] += taken;
        }
      }
      for (const auto& [name, value] : seconds) {
        best[name] = run == 0 ? value : std::min(best[name], value);
      }
    }
    nlohmann::json line = {{"rows", rows}};
    double all = 0;
    for (const Product& product : products) {
      const CpuLinear& linear = *product.layers[0];
      const double operations =
          2.0 * options.layers * rows * linear.inputs() * linear.outputs() * 1e-9;
      line[product.name] = operations / best[product.name];
      all += operations;
    }
    line["all"] = all / best["all"];
    table.push_back(line);
  }
  std::cout << nlohmann::json{{"threads", pool.num_threads()},
                              {"weights", options.bf16 ? "bf16" : "fp32"},
                              {"gflops", table}}
                   .dump()
            << std::endl;
  return absl::OkStatus();
}

}  // namespace
}  // namespace ferrite

int main(int argc, char** argv) {
  ferrite::Options options;
  CLI::App app("Speed of the CPU backend's matrix products");
  app.add_option("--threads", options.threads, "0: every CPU")->check(CLI::Range(0, 1024));
  app.add_option("--layers", options.layers)->check(CLI::Range(1, 1000));
  app.add_option("--hidden", options.hidden)->check(CLI::Range(1, 1 << 16));
  app.add_option("--intermediate", options.intermediate)->check(CLI::Range(1, 1 << 18));
  app.add_option("--kv", options.kv, "kv heads x head_dim")->check(CLI::Range(1, 1 << 16));
  app.add_option("--rows", options.rows, "of x: 1,8,128")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 16));
  app.add_option("--repeat", options.repeat, "the best of so many runs counts")
      ->check(CLI::Range(1, 1000));
  app.add_flag("!--fp32", options.bf16, "weights in fp32");
  app.add_flag("--deterministic", options.deterministic);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = ferrite::Run(options);
  if (!status.ok()) {
    std::cerr << status << std::endl;
    return 1;
  }
  return 0;
}

// A made-up linear in GPTQ's layout, of which the exact weights are known.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "engine/model/gptq.h"

namespace ferrite::test {

struct GptqLinearOptions {
  int64_t outputs = 64;
  int64_t inputs = 64;
  int64_t group_size = 32;
  bool symmetric = true;
  bool act_order = false;
  bool bf16_scales = false;
  uint32_t seed = 1;
  uint32_t order_seed = 1;  // of g_idx alone
};

class GptqLinear {
 public:
  explicit GptqLinear(const GptqLinearOptions& options) : options_(options) {
    std::mt19937 generator(options.seed);
    const int64_t groups = options.inputs / options.group_size;
    qweight_.resize(static_cast<size_t>(options.inputs / 8 * options.outputs));
    std::ranges::generate(qweight_, std::ref(generator));
    // Powers of two times 1 to 1.75: exact in both types, and easily written down.
    for (int64_t i = 0; i < groups * options.outputs; ++i) {
      const uint32_t bits = generator();
      const int exponent = -8 + static_cast<int>(bits % 3);
      const int quarters = static_cast<int>(bits / 16 % 4);
      scales_.push_back(static_cast<float>((1 << 10) + quarters * (1 << 8)) *
                        std::ldexp(1.0f, exponent - 10));
      scale_bits_.push_back(static_cast<uint16_t>(options.bf16_scales
                                                      ? (exponent + 127) << 7 | quarters << 5
                                                      : (exponent + 15) << 10 | quarters << 8));
    }
    if (!options.symmetric) {
      qzeros_.resize(static_cast<size_t>(groups * options.outputs / 8));
      std::ranges::generate(qzeros_, std::ref(generator));
    }
    for (int64_t k = 0; k < options.inputs; ++k) {
      g_idx_.push_back(static_cast<int32_t>(k / options.group_size));
    }
    if (options.act_order) {
      std::mt19937 order_generator(options.order_seed);
      std::ranges::shuffle(g_idx_, order_generator);
    }
    Describe();
  }
  GptqLinear(const GptqLinear&) = delete;
  GptqLinear& operator=(const GptqLinear&) = delete;

  // Points into this; a test may spoil it.
  GptqTensors& tensors() { return tensors_; }
  TensorView& qweight() { return qweight_view_; }
  TensorView& scales() { return scales_view_; }
  TensorView& qzeros() { return qzeros_view_; }
  std::vector<int32_t>& g_idx() { return g_idx_; }
  const std::vector<int32_t>& g_idx() const { return g_idx_; }
  int64_t outputs() const { return options_.outputs; }
  int64_t inputs() const { return options_.inputs; }

  double At(int64_t output, int64_t input) const {
    const int64_t group = g_idx_[static_cast<size_t>(input)];
    const auto at = [&](const std::vector<uint32_t>& words, int64_t word, int64_t place,
                        uint32_t add) {
      return static_cast<int>((words[static_cast<size_t>(word)] + add) >> (4 * (place % 8)) & 15);
    };
    const int q = at(qweight_, input / 8 * options_.outputs + output, input, 0);
    const int zero = options_.symmetric
                         ? 8
                         : at(qzeros_, (group * options_.outputs + output) / 8, output, 0x11111111);
    return double{scales_[static_cast<size_t>(group * options_.outputs + output)]} * (q - zero);
  }

 private:
  void Describe() {
    const int64_t groups = options_.inputs / options_.group_size;
    const auto view = [](const char* name, DType type, std::vector<int64_t> shape,
                         const auto& data) {
      return TensorView{.name = name,
                        .dtype = type,
                        .shape = std::move(shape),
                        .data = std::as_bytes(std::span(data))};
    };
    qweight_view_ =
        view("up.qweight", DType::kI32, {options_.inputs / 8, options_.outputs}, qweight_);
    scales_view_ = view("up.scales", options_.bf16_scales ? DType::kBF16 : DType::kF16,
                        {groups, options_.outputs}, scale_bits_);
    qzeros_view_ = view("up.qzeros", DType::kI32, {groups, options_.outputs / 8}, qzeros_);
    g_idx_view_ = view("up.g_idx", DType::kI32, {options_.inputs}, g_idx_);
    tensors_ = {.qweight = &qweight_view_,
                .scales = &scales_view_,
                .qzeros = options_.symmetric ? nullptr : &qzeros_view_,
                .g_idx = &g_idx_view_,
                .inputs = options_.inputs,
                .outputs = options_.outputs,
                .group_size = options_.group_size,
                .zeros_less_one = true};
  }

  GptqLinearOptions options_;
  std::vector<uint32_t> qweight_;
  std::vector<float> scales_;
  std::vector<uint16_t> scale_bits_;
  std::vector<uint32_t> qzeros_;
  std::vector<int32_t> g_idx_;
  TensorView qweight_view_;
  TensorView scales_view_;
  TensorView qzeros_view_;
  TensorView g_idx_view_;
  GptqTensors tensors_;
};

}  // namespace ferrite::test

// Every way a product can be made, against float64 on the same weights.
#include "cuda/products.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/quant_loader.h"
#include "tests/cuda/gpu_test.h"
#include "tests/engine/model/status_matchers.h"
#include "tests/testing/gptq_linear.h"

namespace ferrite {
namespace {

using test::Device;
using test::GptqLinear;
using test::IsOk;
using Epilogue = Product::Epilogue;

constexpr int32_t kInputs = 192;
constexpr int32_t kMaxRows = 300;

// A part of a projection, and its weights.
struct TestPart {
  LinearWeight weight;
  std::vector<double> values;  // [outputs, kInputs]
};

class ProductsTest : public test::GpuTest, public testing::WithParamInterface<GpuType> {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped()) {
      stream_.emplace(Stream::Create(0).value());
    }
  }

  TestPart Dense(int64_t outputs) {
    const auto floats = test::RandomNormal(static_cast<size_t>(outputs * kInputs), ++seed_, 0.05f);
    const auto bits = test::Narrow(GetParam(), floats);
    GpuWeight weight = GpuWeight::Allocate("dense", outputs, kInputs, GetParam(), 0).value();
    test::CheckCuda(
        cudaMemcpy(weight.data(), bits.data(), bits.size() * 2, cudaMemcpyHostToDevice));
    const auto values = test::Widen(GetParam(), bits);
    return {std::move(weight), {values.begin(), values.end()}};
  }

  TestPart Quantized(int64_t outputs, bool fused, bool symmetric, bool act_order) {
    GptqLinear linear({.outputs = outputs,
                       .inputs = kInputs,
                       .group_size = 64,
                       .symmetric = symmetric,
                       .act_order = act_order,
                       .seed = ++seed_});
    std::vector<double> values;
    for (int64_t n = 0; n < outputs; ++n) {
      for (int64_t k = 0; k < kInputs; ++k) {
        values.push_back(linear.At(n, k));
      }
    }
    GpuQuantWeight raw = GpuQuantWeight::Create("raw", linear.tensors(), *stream_).value();
    if (!fused) {
      return {std::move(raw), values};
    }
    MarlinWeight tiles = MarlinWeight::Allocate("tiles", raw.shape(), 0).value();
    if (act_order) {
      const std::vector<int32_t> order = GroupOrder(linear.tensors());
      test::CheckCuda(
          cudaMemcpy(tiles.order(), order.data(), order.size() * 4, cudaMemcpyHostToDevice));
    }
    test::CheckCuda(cudaDeviceSynchronize());
    EXPECT_THAT(tiles.Fill(0, raw, *stream_), IsOk());
    EXPECT_THAT(stream_->Synchronize(), IsOk());
    return {std::move(tiles), values};
  }

  // All row numbers and epilogues of the projection that these parts make.
  void Check(std::vector<TestPart> parts, bool with_bias) {
    std::vector<LinearWeight> weights;
    values_.clear();
    for (TestPart& part : parts) {
      weights.push_back(std::move(part.weight));
      values_.insert(values_.end(), part.values.begin(), part.values.end());
    }
    outputs_ = static_cast<int32_t>(values_.size() / kInputs);
    bias_.assign(static_cast<size_t>(outputs_), 0.0f);
    DeviceBuffer<float> bias;
    if (with_bias) {
      bias_ = test::RandomNormal(static_cast<size_t>(outputs_), ++seed_);
      bias = DeviceBuffer<float>::Create(0, outputs_, "bias").value();
      test::CheckCuda(
          cudaMemcpy(bias.data(), bias_.data(), bias_.size() * 4, cudaMemcpyHostToDevice));
    }
    TransformerGpuWeights model(GpuWeight::Allocate("embed", 8, 8, GetParam(), 0).value());
    model.layers.emplace_back();
    model.layers[0].qkv = Linear::Create(std::move(weights), std::move(bias)).value();
    auto products = Products::Create(model, kMaxRows, /*deterministic=*/false, *stream_);
    ASSERT_THAT(products, IsOk());
    const Linear& linear = model.layers[0].qkv;
    for (const int32_t rows : {1, 2, 8, 9, 65, 256, 257, kMaxRows}) {
      SCOPED_TRACE(rows);
      for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kFp32, Epilogue::kAdd}) {
        CheckOne(*products, linear, rows, epilogue, false);
      }
      if (products->FusesSiluMul(rows, linear)) {
        CheckOne(*products, linear, rows, Epilogue::kSiluMul, false);
      }
      if (products->FusesNorm(rows, linear)) {
        CheckOne(*products, linear, rows, Epilogue::kFp32, true);
      }
    }
  }

 private:
  void CheckOne(const Products& products, const Linear& linear, int32_t rows, Epilogue epilogue,
                bool norm) {
    const int32_t room = rows + 7;
    const auto x = test::Narrow(GetParam(), test::RandomNormal(size_t(room) * kInputs, 11));
    const auto residual = test::RandomNormal(size_t(room) * kInputs, 12);
    const std::vector<float> ones(kInputs, 1.0f);
    const bool pairs = epilogue == Epilogue::kSiluMul;
    const size_t width = static_cast<size_t>(pairs ? outputs_ / 2 : outputs_);
    const size_t size = width * static_cast<size_t>(room + 1);  // the last row is nobody's
    const auto start = test::RandomNormal(size, 13);
    const Device<uint16_t> device_x(x);
    const Device<float> device_residual(residual);
    const Device<float> device_ones(ones);
    const Device<float> wide(start);
    const Device<uint16_t> narrow(size);
    const bool is_fp32 = epilogue == Epilogue::kFp32 || epilogue == Epilogue::kAdd;
    Product product{.rows = rows, .room = room, .epilogue = epilogue};
    product.y = is_fp32 ? static_cast<void*>(wide.get()) : narrow.get();
    if (norm) {
      product.residual = device_residual.get();
      product.norm_weight = device_ones.get();
      product.epsilon = 1e-6f;
    } else {
      product.x = device_x.get();
    }
    test::CheckCuda(cudaDeviceSynchronize());  // the copies above are on another stream
    ASSERT_THAT(products.Run(product, linear), IsOk());
    ASSERT_THAT(stream_->Synchronize(), IsOk());
    const auto actual = is_fp32 ? wide.Read() : test::Widen(GetParam(), narrow.Read());
    if (is_fp32) {
      ASSERT_TRUE(std::equal(actual.end() - width, actual.end(), start.end() - width))
          << "row " << room << " was written, of " << rows << " rows";
    }
    const auto input = test::Widen(GetParam(), x);
    for (int32_t row = 0; row < rows; row += rows < 9 ? 1 : 37) {
      const size_t at = static_cast<size_t>(row) * width;
      const auto* first = (norm ? residual : input).data() + size_t(row) * kInputs;
      std::vector<double> in(first, first + kInputs);
      Normalize(norm, &in);
      const auto dot = [&](size_t n) {
        double sum = bias_[n];
        for (size_t k = 0; k < kInputs; ++k) {
          sum += in[k] * values_[n * kInputs + k];
        }
        return sum;
      };
      std::vector<double> expected;
      for (size_t n = 0; n < width; ++n) {
        const double sum = dot(n);
        expected.push_back(pairs ? sum / (1 + std::exp(-sum)) * dot(width + n)
                           : epilogue == Epilogue::kAdd ? sum + start[at + n]
                                                        : sum);
      }
      ASSERT_LE(test::RelativeError(std::span(actual).subspan(at, width), expected),
                test::Tolerance(GetParam()))
          << "row " << row << ", epilogue " << static_cast<int>(epilogue) << ", norm " << norm;
    }
  }

  static void Normalize(bool norm, std::vector<double>* row) {
    double squares = 0;
    for (const double value : *row) {
      squares += value * value;
    }
    const double factor = norm ? 1 / std::sqrt(squares / kInputs + 1e-6) : 1;
    for (double& value : *row) {
      value *= factor;
    }
  }

  std::optional<Stream> stream_;
  uint32_t seed_ = 0;
  int32_t outputs_ = 0;
  std::vector<double> values_;
  std::vector<float> bias_;
};

INSTANTIATE_TEST_SUITE_P(Types, ProductsTest, testing::Values(GpuType::kFp16, GpuType::kBf16),
                         [](const auto& type) { return test::TypeName(type.param); });

std::vector<TestPart> Parts(auto... parts) {
  std::vector<TestPart> all;
  (all.push_back(std::move(parts)), ...);
  return all;
}

TEST_P(ProductsTest, DenseWeights) {
  Check(Parts(Dense(320)), false);
  Check(Parts(Dense(320)), true);
  Check(Parts(Dense(50)), true);
}

TEST_P(ProductsTest, RawWeights) {
  Check(Parts(Quantized(320, false, true, false)), false);
  Check(Parts(Quantized(40, false, false, true)), true);
}

TEST_P(ProductsTest, RepackedWeights) {
  Check(Parts(Quantized(320, true, true, false)), false);
  Check(Parts(Quantized(320, true, false, false)), true);
  Check(Parts(Quantized(320, true, true, true)), false);
  Check(Parts(Quantized(320, true, false, true)), true);
}

TEST_P(ProductsTest, PartsOfEveryForm) {
  for (const bool bias : {false, true}) {
    Check(Parts(Dense(64), Dense(24), Dense(8)), bias);
    Check(Parts(Quantized(128, true, true, true), Quantized(64, true, false, true),
                Quantized(64, true, true, false)),
          bias);
    Check(Parts(Quantized(64, true, true, false), Dense(64), Quantized(40, false, false, false)),
          bias);
    // Columns of an odd number and at odd places.
    Check(Parts(Dense(63), Quantized(64, true, true, false)), bias);
  }
}

}  // namespace
}  // namespace ferrite

#include "cpu/matmul_engine.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/dnnl_engine.h"
#include "cpu/dnnl_kernel.h"
#include "cpu/panel_engine.h"
#include "cpu/simd_ops.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ferrite {
namespace {

std::vector<float> RandomValues(int64_t n, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) {
    value = normal(generator);
  }
  return values;
}

float Rounded(float value) { return Bf16ToFloat(FloatToBf16(value)); }

TensorView View(const std::vector<float>& values, int64_t rows) {
  return {.name = "w",
          .dtype = DType::kF32,
          .shape = {rows, static_cast<int64_t>(values.size()) / rows},
          .data = std::as_bytes(std::span(values))};
}

TensorView View(const std::vector<float>& values) {
  return {.name = "b",
          .dtype = DType::kF32,
          .shape = {static_cast<int64_t>(values.size())},
          .data = std::as_bytes(std::span(values))};
}

struct Shape {
  int32_t outputs;
  int32_t inputs;
};

constexpr Shape kShapes[] = {{1, 3}, {80, 48}, {97, 48}, {48, 101}, {1300, 576}, {3000, 64}};
constexpr int32_t kMostRows = 620;  // more than are rearranged at a time

struct Engine {
  std::string name;
  ComputeType type;
  bool dnnl;
  Isa isa;
};

std::vector<Engine> Engines() {
  std::vector<Engine> engines = {
      {"DnnlFp32", ComputeType::kFp32, true, Isa::kBaseline},
      {"DnnlBf16", ComputeType::kBf16, true, Isa::kBaseline},
  };
  const char* names[] = {"Baseline", "Avx2", "Avx512"};
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= BestIsa()) {
      const std::string name = std::string("Panels") + names[static_cast<int>(isa)];
      engines.push_back({name + "Fp32", ComputeType::kFp32, false, isa});
      engines.push_back({name + "Bf16", ComputeType::kBf16, false, isa});
    }
  }
  return engines;
}

// Rows of x in the engine's input type, and as the values it makes of them.
struct Input {
  std::vector<std::byte> bytes;
  std::vector<float> values;
};

class MatmulEngineTest : public testing::TestWithParam<std::tuple<Engine, int32_t>> {
 protected:
  MatmulEngineTest() : pool_(std::get<1>(GetParam())) {}

  void SetUp() override {
    if (!param().dnnl) {
      engine_ = std::make_unique<PanelEngine>(param().type, param().isa, &pool_);
      return;
    }
    auto engine = DnnlEngine::Create(param().type, &pool_);
    if (!engine.ok()) {
      ASSERT_EQ(param().type, ComputeType::kBf16) << engine.status();
      GTEST_SKIP() << engine.status();
    }
    engine_ = *std::move(engine);
  }

  const Engine& param() const { return std::get<0>(GetParam()); }

  std::unique_ptr<CpuLinear> Pack(std::vector<LinearTensors> parts) {
    return engine_->Pack(parts).value();
  }

  // The first rows of x; those past them are NaN and must not leak into the others.
  Input Rows(const std::vector<float>& x, int32_t rows, int32_t inputs) const {
    Input input;
    const int64_t padded = (rows + 63) / 64 * int64_t{64} * inputs;
    input.values.assign(padded, NAN);
    std::copy_n(x.begin(), int64_t{rows} * inputs, input.values.begin());
    if (engine_->input_type() == ComputeType::kFp32) {
      input.bytes.resize(padded * sizeof(float));
      std::memcpy(input.bytes.data(), input.values.data(), input.bytes.size());
      return input;
    }
    std::vector<uint16_t> narrow(padded);
    for (int64_t i = 0; i < padded; ++i) {
      narrow[i] = FloatToBf16(input.values[i]);
      input.values[i] = Bf16ToFloat(narrow[i]);
    }
    input.bytes.resize(padded * sizeof(uint16_t));
    std::memcpy(input.bytes.data(), narrow.data(), input.bytes.size());
    return input;
  }

  ThreadPool pool_;
  std::unique_ptr<MatmulEngine> engine_;
};

INSTANTIATE_TEST_SUITE_P(Engines, MatmulEngineTest,
                         testing::Combine(testing::ValuesIn(Engines()), testing::Values(1, 3)),
                         [](const auto& engine) {
                           return std::get<0>(engine.param).name + "Threads" +
                                  std::to_string(std::get<1>(engine.param));
                         });

TEST_P(MatmulEngineTest, MatchesDoubleForEveryRowCount) {
  for (const Shape& shape : kShapes) {
    const std::vector<float> w = RandomValues(int64_t{shape.outputs} * shape.inputs, 1);
    const std::vector<float> b = RandomValues(shape.outputs, 3);
    const std::vector<float> x = RandomValues(int64_t{kMostRows} * shape.inputs, 2);
    const TensorView weight = View(w, shape.outputs);
    const TensorView bias = View(b);
    const auto plain = Pack({{.weight = &weight}});
    const auto biased = Pack({{.weight = &weight, .bias = &bias}});
    for (const int32_t rows : {1, 2, 7, 9, 13, 33, 48, 59, 64, 65, 200, kMostRows}) {
      const Input input = Rows(x, rows, shape.inputs);
      std::vector<float> y(int64_t{rows} * shape.outputs + 1, 2.0f);
      std::vector<float> y_biased(y.size(), NAN);
      ASSERT_TRUE(plain->Run(input.bytes.data(), rows, y.data(), CpuLinear::Output::kAdd).ok());
      ASSERT_TRUE(
          biased->Run(input.bytes.data(), rows, y_biased.data(), CpuLinear::Output::kAssign).ok());
      for (int32_t r = 0; r<rows; r += rows> 20 ? 3 : 1) {
        for (int32_t o = 0; o < shape.outputs; o += 7) {
          double expected = 0;
          double magnitude = 3;
          for (int32_t i = 0; i < shape.inputs; ++i) {
            const float weight_value = w[o * shape.inputs + i];
            const double product =
                double{input.values[r * shape.inputs + i]} *
                (param().type == ComputeType::kBf16 ? Rounded(weight_value) : weight_value);
            expected += product;
            magnitude += std::abs(product);
          }
          ASSERT_NEAR(y[r * shape.outputs + o], expected + 2, 1e-6 * magnitude)
              << shape.outputs << " x " << shape.inputs << ", " << rows << " rows";
          ASSERT_NEAR(y_biased[r * shape.outputs + o], expected + b[o], 1e-6 * magnitude)
              << shape.outputs << " x " << shape.inputs << ", " << rows << " rows";
        }
      }
      EXPECT_EQ(y.back(), 2.0f) << "wrote past the end";
    }
  }
}

TEST_P(MatmulEngineTest, StackedTensorsAndReadRowAgreeWithTheSource) {
  constexpr int32_t kInputs = 577;
  const std::vector<float> a = RandomValues(500 * kInputs, 1);
  const std::vector<float> b = RandomValues(3 * kInputs, 2);
  const std::vector<float> bias = RandomValues(500, 3);
  const TensorView view_a = View(a, 500);
  const TensorView view_b = View(b, 3);
  const TensorView view_bias = View(bias);
  const auto linear =
      Pack({{.weight = &view_b}, {.weight = &view_a, .bias = &view_bias}, {.weight = &view_b}});
  ASSERT_EQ(linear->outputs(), 506);
  std::vector<float> row(kInputs);
  for (int32_t r = 0; r < 506; ++r) {
    linear->ReadRow(r, row);
    const float* source = r < 3     ? b.data() + r * kInputs
                          : r < 503 ? a.data() + (r - 3) * kInputs
                                    : b.data() + (r - 503) * kInputs;
    for (int32_t i = 0; i < kInputs; ++i) {
      const float expected = param().type == ComputeType::kBf16 ? Rounded(source[i]) : source[i];
      ASSERT_EQ(row[i], expected) << r << " " << i;
    }
  }
  // Zero times the weights leaves the biases, each at its place.
  const Input zeros = Rows(std::vector<float>(kInputs, 0.0f), 1, kInputs);
  std::vector<float> y(506);
  ASSERT_TRUE(linear->Run(zeros.bytes.data(), 1, y.data(), CpuLinear::Output::kAssign).ok());
  for (int32_t o = 0; o < 506; ++o) {
    EXPECT_EQ(y[o], o < 3 || o >= 503 ? 0.0f : bias[o - 3]) << o;
  }
}

TEST_P(MatmulEngineTest, ARowDoesNotDependOnItsNeighbours) {
  if (param().dnnl) {
    GTEST_SKIP() << "not promised by oneDNN";
  }
  for (const Shape& shape : kShapes) {
    const std::vector<float> w = RandomValues(int64_t{shape.outputs} * shape.inputs, 1);
    const std::vector<float> x = RandomValues(int64_t{kMostRows} * shape.inputs, 2);
    const TensorView view = View(w, shape.outputs);
    const auto linear = Pack({{.weight = &view}});
    std::vector<float> all(int64_t{kMostRows} * shape.outputs);
    const Input padded = Rows(x, kMostRows, shape.inputs);
    ASSERT_TRUE(
        linear->Run(padded.bytes.data(), kMostRows, all.data(), CpuLinear::Output::kAssign).ok());
    for (int32_t rows = 1; rows < 70; ++rows) {
      std::vector<float> y(int64_t{rows} * shape.outputs);
      const Input input = Rows(x, rows, shape.inputs);
      ASSERT_TRUE(linear->Run(input.bytes.data(), rows, y.data(), CpuLinear::Output::kAssign).ok());
      ASSERT_EQ(std::memcmp(y.data(), all.data(), y.size() * sizeof(float)), 0)
          << shape.outputs << " x " << shape.inputs << ", " << rows << " rows";
    }
    for (const int32_t first : {1, 5, 12, kMostRows - 1}) {  // the others' places
      const int32_t rows = kMostRows - first;
      const std::vector<float> rest(x.begin() + int64_t{first} * shape.inputs, x.end());
      std::vector<float> y(int64_t{rows} * shape.outputs);
      const Input input = Rows(rest, rows, shape.inputs);
      ASSERT_TRUE(linear->Run(input.bytes.data(), rows, y.data(), CpuLinear::Output::kAssign).ok());
      ASSERT_EQ(std::memcmp(y.data(), all.data() + int64_t{first} * shape.outputs,
                            y.size() * sizeof(float)),
                0)
          << shape.outputs << " x " << shape.inputs << ", from row " << first;
    }
  }
}

TEST(DnnlEngineTest, NoKernelIsAReferenceOne) {
  ThreadPool pool(1);
  auto engine = DnnlEngine::Create(ComputeType::kFp32, &pool).value();
  for (const Shape& shape : kShapes) {
    const auto kernel = engine->GetKernel(shape.inputs, shape.outputs);
    ASSERT_TRUE(kernel.ok()) << kernel.status();
    EXPECT_THAT((*kernel)->implementation(), testing::Not(testing::HasSubstr("ref")));
  }
}

TEST(MatmulEngineCreateTest, TakesOneDnnOnlyWhereTheCpuMultipliesBf16) {
  ThreadPool pool(1);
  const auto fp32 = MatmulEngine::Create(ComputeType::kFp32, /*deterministic=*/false, &pool);
  ASSERT_TRUE(fp32.ok()) << fp32.status();
  EXPECT_EQ((*fp32)->input_type(), ComputeType::kFp32);
  const auto bf16 = MatmulEngine::Create(ComputeType::kBf16, /*deterministic=*/false, &pool);
  ASSERT_TRUE(bf16.ok()) << bf16.status();
  EXPECT_EQ((*bf16)->input_type(), CpuMultipliesBf16() ? ComputeType::kBf16 : ComputeType::kFp32);
}

}  // namespace
}  // namespace ferrite

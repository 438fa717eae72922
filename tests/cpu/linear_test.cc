#include "cpu/linear.h"

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/matmul_kernel.h"
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

TensorView View(const std::vector<float>& values, int64_t rows) {
  return {.name = "w",
          .dtype = DType::kF32,
          .shape = {rows, static_cast<int64_t>(values.size()) / rows},
          .data = std::as_bytes(std::span(values))};
}

struct Shape {
  int32_t outputs;
  int32_t inputs;
};

constexpr Shape kShapes[] = {{1, 3}, {80, 48}, {97, 48}, {48, 100}, {1300, 576}, {3000, 64}};
constexpr int32_t kMostRows = 200;

class LinearTest : public testing::TestWithParam<int32_t> {
 protected:
  LinearTest() : pool_(GetParam()) {}

  // Rows past the last are NaN: they must not leak into the others.
  static std::vector<float> Padded(const std::vector<float>& x, int32_t rows, int32_t inputs) {
    std::vector<float> padded((kMostRows + MatmulRuntime::kMaxRows) * inputs, NAN);
    std::copy_n(x.begin(), int64_t{rows} * inputs, padded.begin());
    return padded;
  }

  ThreadPool pool_;
};

INSTANTIATE_TEST_SUITE_P(Threads, LinearTest, testing::Values(1, 3));

TEST_P(LinearTest, MatchesDoubleForEveryRowCount) {
  auto runtime = MatmulRuntime::Create(ComputeType::kFp32, &pool_).value();
  for (const Shape& shape : kShapes) {
    const std::vector<float> w = RandomValues(int64_t{shape.outputs} * shape.inputs, 1);
    const std::vector<float> x = RandomValues(int64_t{kMostRows} * shape.inputs, 2);
    const TensorView view = View(w, shape.outputs);
    const TensorView* views[] = {&view};
    const Linear linear = Linear::Create(runtime.get(), views).value();
    for (const int32_t rows : {1, 2, 7, 9, 33, 64, 65, 200}) {
      const std::vector<float> input = Padded(x, rows, shape.inputs);
      std::vector<float> y(int64_t{rows} * shape.outputs + 1, 2.0f);
      ASSERT_TRUE(linear.Run(input.data(), rows, y.data(), Linear::Output::kAdd).ok());
      for (int32_t r = 0; r < rows; r += 3) {
        for (int32_t o = 0; o < shape.outputs; o += 7) {
          double expected = 2;
          double magnitude = 2;
          for (int32_t i = 0; i < shape.inputs; ++i) {
            const double product = double{x[r * shape.inputs + i]} * w[o * shape.inputs + i];
            expected += product;
            magnitude += std::abs(product);
          }
          ASSERT_NEAR(y[r * shape.outputs + o], expected, 1e-6 * magnitude)
              << shape.outputs << " x " << shape.inputs << ", " << rows << " rows";
        }
      }
      EXPECT_EQ(y.back(), 2.0f) << "wrote past the end";
    }
  }
}

TEST_P(LinearTest, StackedTensorsAndReadRowAgreeWithTheSource) {
  for (const ComputeType type : {ComputeType::kFp32, ComputeType::kBf16}) {
    auto runtime = MatmulRuntime::Create(type, &pool_);
    if (!runtime.ok()) {
      EXPECT_EQ(type, ComputeType::kBf16) << runtime.status();
      continue;
    }
    constexpr int32_t kInputs = 576;
    const std::vector<float> a = RandomValues(500 * kInputs, 1);
    const std::vector<float> b = RandomValues(3 * kInputs, 2);
    const TensorView view_a = View(a, 500);
    const TensorView view_b = View(b, 3);
    const TensorView* views[] = {&view_b, &view_a, &view_b};
    const Linear linear = Linear::Create(runtime->get(), views).value();
    ASSERT_EQ(linear.outputs(), 506);
    std::vector<float> row(kInputs);
    for (int32_t r = 0; r < 506; ++r) {
      linear.ReadRow(r, row);
      const float* source = r < 3     ? b.data() + r * kInputs
                            : r < 503 ? a.data() + (r - 3) * kInputs
                                      : b.data() + (r - 503) * kInputs;
      for (int32_t i = 0; i < kInputs; ++i) {
        const float expected =
            type == ComputeType::kBf16 ? Bf16ToFloat(FloatToBf16(source[i])) : source[i];
        ASSERT_EQ(row[i], expected) << r << " " << i;
      }
    }
  }
}

TEST_P(LinearTest, ARowDoesNotDependOnItsNeighbours) {
  auto runtime = MatmulRuntime::Create(ComputeType::kFp32, &pool_).value();
  const auto kernel = runtime->GetKernel(64, 64);
  ASSERT_TRUE(kernel.ok());
  if ((*kernel)->implementation().find("brg") == std::string::npos) {
    GTEST_SKIP() << "not promised by " << (*kernel)->implementation();
  }
  for (const Shape& shape : kShapes) {
    const std::vector<float> w = RandomValues(int64_t{shape.outputs} * shape.inputs, 1);
    const std::vector<float> x = RandomValues(int64_t{kMostRows} * shape.inputs, 2);
    const TensorView view = View(w, shape.outputs);
    const TensorView* views[] = {&view};
    const Linear linear = Linear::Create(runtime.get(), views).value();
    std::vector<float> all(int64_t{kMostRows} * shape.outputs);
    const std::vector<float> padded = Padded(x, kMostRows, shape.inputs);
    ASSERT_TRUE(linear.Run(padded.data(), kMostRows, all.data(), Linear::Output::kAssign).ok());
    for (int32_t rows = 1; rows < 70; ++rows) {
      std::vector<float> y(int64_t{rows} * shape.outputs);
      const std::vector<float> input = Padded(x, rows, shape.inputs);
      ASSERT_TRUE(linear.Run(input.data(), rows, y.data(), Linear::Output::kAssign).ok());
      ASSERT_EQ(std::memcmp(y.data(), all.data(), y.size() * sizeof(float)), 0)
          << shape.outputs << " x " << shape.inputs << ", " << rows << " rows";
    }
  }
}

TEST_P(LinearTest, NoKernelIsAReferenceOne) {
  auto runtime = MatmulRuntime::Create(ComputeType::kFp32, &pool_).value();
  for (const Shape& shape : kShapes) {
    const auto kernel = runtime->GetKernel(shape.inputs, shape.outputs);
    ASSERT_TRUE(kernel.ok()) << kernel.status();
    EXPECT_THAT((*kernel)->implementation(), testing::Not(testing::HasSubstr("ref")));
  }
}

}  // namespace
}  // namespace ferrite

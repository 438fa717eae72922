#include "cuda/kernels/rms_norm.h"

#include "gmock/gmock.h"
#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;

constexpr float kEpsilon = 1e-5f;

class RmsNormTest : public test::GpuTest, public testing::WithParamInterface<GpuType> {
 protected:
  // One row's norm in double.
  static void Append(std::span<const float> row, std::span<const float> weight,
                     std::vector<double>& out) {
    double squares = 0;
    for (const float x : row) {
      squares += double{x} * x;
    }
    const double scale = 1 / std::sqrt(squares / static_cast<double>(row.size()) + kEpsilon);
    for (size_t i = 0; i < row.size(); ++i) {
      out.push_back(row[i] * scale * weight[i]);
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Types, RmsNormTest, testing::Values(GpuType::kFp16, GpuType::kBf16),
                         [](const auto& type) { return test::TypeName(type.param); });

TEST_P(RmsNormTest, AddsAndMatchesDouble) {
  for (const int32_t hidden : {1, 7, 64, 100, 1000, 1001, 4096, 8192, 16384, 16388}) {
    for (const int32_t rows : {1, 3, 130}) {
      for (const bool with_delta : {false, true}) {
        const size_t size = size_t{1} * rows * hidden;
        // Rows of small values show a wrong epsilon.
        const float scale = rows == 3 ? 1e-3f : 2.0f;
        const auto start = test::RandomNormal(size, hidden, scale);
        const auto weight_values = test::RandomNormal(hidden, 5);
        const auto delta_bits =
            test::Narrow(GetParam(), test::RandomNormal(size, hidden + 1, scale));
        const auto delta_values = test::Widen(GetParam(), delta_bits);
        std::vector<float> sums = start;
        for (size_t i = 0; with_delta && i < size; ++i) {
          sums[i] += delta_values[i];
        }
        std::vector<double> expected;
        for (int32_t row = 0; row < rows; ++row) {
          Append(std::span(sums).subspan(size_t{1} * row * hidden, hidden), weight_values,
                 expected);
        }
        const Device<float> residual(start);
        const Device<float> weight(weight_values);
        const Device<uint16_t> delta(delta_bits);
        const Device<uint16_t> out(size);
        RmsNormArguments arguments;
        arguments.type = GetParam();
        arguments.residual = residual.get();
        arguments.delta = with_delta ? delta.get() : nullptr;
        arguments.weight = weight.get();
        arguments.epsilon = kEpsilon;
        arguments.num_rows = rows;
        arguments.hidden = hidden;
        arguments.out = out.get();
        test::CheckCuda(RmsNorm(arguments, nullptr));
        EXPECT_EQ(residual.Read(), sums) << rows << " x " << hidden;
        EXPECT_LE(test::RelativeError(test::Widen(GetParam(), out.Read()), expected),
                  test::Tolerance(GetParam()))
            << rows << " x " << hidden << (with_delta ? " with delta" : "");
      }
    }
  }
}

// Many rows are otherwise taken by fewer threads each.
TEST_P(RmsNormTest, FixedRowsHaveTheSameBitsHoweverManyThereAre) {
  constexpr int32_t kRows = 300;
  for (const int32_t hidden : {101, 576, 4096}) {
    const Device<float> residual(test::RandomNormal(size_t{kRows} * hidden, 3));
    const Device<float> weight(test::RandomNormal(hidden, 4));
    const auto run = [&](int32_t first, int32_t count) {
      const Device<uint16_t> out(size_t(count) * hidden);
      RmsNormArguments arguments;
      arguments.type = GetParam();
      arguments.residual = residual.get() + int64_t{first} * hidden;
      arguments.weight = weight.get();
      arguments.epsilon = kEpsilon;
      arguments.fixed = true;
      arguments.num_rows = count;
      arguments.hidden = hidden;
      arguments.out = out.get();
      test::CheckCuda(RmsNorm(arguments, nullptr));
      return out.Read();
    };
    const std::vector<uint16_t> all = run(0, kRows);
    for (const int32_t row : {0, 1, 17, 299}) {
      const auto begin = all.begin() + int64_t{row} * hidden;
      EXPECT_EQ(run(row, 1), std::vector<uint16_t>(begin, begin + hidden)) << row;
    }
  }
}

TEST_P(RmsNormTest, GathersRows) {
  constexpr int32_t kRows = 9;
  const std::vector<int32_t> picks = {8, 0, 3, 3};
  for (const int32_t hidden : {96, 101}) {
    const auto start = test::RandomNormal(size_t{kRows} * hidden, 3);
    const auto weight_values = test::RandomNormal(hidden, 4);
    std::vector<double> expected;
    for (const int32_t row : picks) {
      Append(std::span(start).subspan(size_t{1} * row * hidden, hidden), weight_values, expected);
    }
    const Device<float> residual(start);
    const Device<float> weight(weight_values);
    const Device<int32_t> rows(picks);
    const Device<uint16_t> out(picks.size() * hidden);
    RmsNormArguments arguments;
    arguments.type = GetParam();
    arguments.residual = residual.get();
    arguments.rows = rows.get();
    arguments.weight = weight.get();
    arguments.epsilon = kEpsilon;
    arguments.num_rows = static_cast<int32_t>(picks.size());
    arguments.hidden = hidden;
    arguments.out = out.get();
    test::CheckCuda(RmsNorm(arguments, nullptr));
    EXPECT_EQ(residual.Read(), start);
    EXPECT_LE(test::RelativeError(test::Widen(GetParam(), out.Read()), expected),
              test::Tolerance(GetParam()));
  }
}

}  // namespace
}  // namespace ferrite

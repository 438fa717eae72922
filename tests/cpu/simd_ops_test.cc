#include "cpu/simd_ops.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "cpu/simd.h"
#include "gtest/gtest.h"

namespace ferrite {
namespace {

std::vector<float> RandomValues(int64_t n, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> values(n);
  for (float& value : values) {
    value = normal(generator);
  }
  return values;
}

TEST(SimdOpsTest, ExpIsAccurateOverItsRange) {
  for (double x = -86.9; x < 88.0; x += 0.00731) {
    const auto rounded = static_cast<float>(x);
    simd::Floats value = simd::Floats{} + rounded;
    simd::Exp(value, value);
    const double expected = std::exp(static_cast<double>(rounded));
    ASSERT_NEAR(value[3] / expected, 1.0, 2.5e-7) << rounded;
  }
  simd::Floats extremes = {};
  extremes[1] = -std::numeric_limits<float>::infinity();
  extremes[2] = std::numeric_limits<float>::infinity();
  extremes[3] = std::numeric_limits<float>::quiet_NaN();
  simd::Exp(extremes, extremes);
  EXPECT_EQ(extremes[0], 1.0f);
  EXPECT_LT(extremes[1], 1e-37f);
  EXPECT_GT(extremes[2], 1e38f);
  EXPECT_TRUE(std::isnan(extremes[3]));
}

TEST(SimdOpsTest, Bf16RoundsToNearestEvenInBothForms) {
  const float infinity = std::numeric_limits<float>::infinity();
  const struct {
    float value;
    uint16_t bits;
  } cases[] = {{1.0f, 0x3F80},        {1.00390625f, 0x3F80},  // a tie, down to even
               {1.01171875f, 0x3F82},                         // a tie, up to even
               {1.00391f, 0x3F81},    {-2.0f, 0xC000},       {0.0f, 0},          {-0.0f, 0x8000},
               {infinity, 0x7F80},    {3.4e38f, 0x7F80},     {-infinity, 0xFF80}};
  for (const auto& c : cases) {
    EXPECT_EQ(FloatToBf16(c.value), c.bits) << c.value;
    uint16_t lanes[simd::kLanes];
    simd::Store(simd::Floats{} + c.value, lanes);
    if (c.value != 0) {  // adding to zero loses a sign
      EXPECT_EQ(lanes[7], c.bits) << c.value;
    }
  }
  uint16_t lanes[simd::kLanes];
  simd::Store(simd::Floats{} + std::numeric_limits<float>::quiet_NaN(), lanes);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(lanes[0])));
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::numeric_limits<float>::quiet_NaN()))));
  for (uint32_t bits = 0; bits < 0x7F80; ++bits) {
    ASSERT_EQ(FloatToBf16(Bf16ToFloat(static_cast<uint16_t>(bits))), bits);
  }
}

TEST(SimdOpsTest, RmsNormMatchesDouble) {
  for (const int64_t n : {1, 15, 16, 17, 48, 100, 576}) {
    const std::vector<float> x = RandomValues(n, 1);
    const std::vector<float> weight = RandomValues(n, 2);
    double squares = 0;
    for (const float value : x) {
      squares += double{value} * value;
    }
    std::vector<float> out(n);
    std::vector<uint16_t> narrow(n);
    RmsNorm(x.data(), weight.data(), 1e-5f, n, out.data());
    RmsNorm(x.data(), weight.data(), 1e-5f, n, narrow.data());
    for (int64_t i = 0; i < n; ++i) {
      const double expected = x[i] / std::sqrt(squares / n + double{1e-5f}) * weight[i];
      ASSERT_NEAR(out[i], expected, 1e-6 * std::abs(expected)) << n << " " << i;
      ASSERT_NEAR(Bf16ToFloat(narrow[i]), expected, 0.004 * std::abs(expected));
    }
  }
}

TEST(SimdOpsTest, SiluMulMatchesDouble) {
  for (const int64_t n : {1, 16, 31, 100}) {
    std::vector<float> gate = RandomValues(n, 3);
    const std::vector<float> up = RandomValues(n, 4);
    gate[0] = -200;  // far beyond where e^-g overflows
    std::vector<float> out(n);
    std::vector<uint16_t> narrow(n);
    SiluMul(gate.data(), up.data(), n, out.data());
    SiluMul(gate.data(), up.data(), n, narrow.data());
    for (int64_t i = 0; i < n; ++i) {
      const double expected = gate[i] / (1 + std::exp(-double{gate[i]})) * up[i];
      ASSERT_NEAR(out[i], expected, 1e-6 * std::abs(expected) + 1e-30) << n << " " << i;
      ASSERT_NEAR(Bf16ToFloat(narrow[i]), expected, 0.004 * std::abs(expected) + 1e-30);
    }
  }
}

TEST(SimdOpsTest, RotateHeadsTurnsHalfSplitPairs) {
  const std::vector<float> cosines = {0.5f, 0.0f, 1.0f};
  const std::vector<float> sines = {0.25f, 1.0f, 0.0f};
  std::vector<float> x = {1, 2, 3, 4, 5, 6, 1, 0, 0, 0, 1, 0};
  RotateHeads(cosines.data(), sines.data(), 3, 2, x.data());
  EXPECT_EQ(x, (std::vector<float>{-0.5f, -5, 3, 2.25f, 2, 6, 0.5f, -1, 0, 0.25f, 0, 0}));
}

TEST(SimdOpsTest, AddToAdds) {
  std::vector<float> y = RandomValues(37, 5);
  const std::vector<float> x = RandomValues(37, 6);
  const std::vector<float> before = y;
  AddTo(x.data(), 36, y.data());
  for (int i = 0; i < 36; ++i) {
    EXPECT_EQ(y[i], before[i] + x[i]);
  }
  EXPECT_EQ(y[36], before[36]);
}

}  // namespace
}  // namespace ferrite

#include "cuda/kernels/fill_random.h"

#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;

class FillRandomTest : public test::GpuTest {};

std::vector<float> Fill(int64_t size, float mean, float deviation, uint64_t seed) {
  const Device<float> out(size);
  test::CheckCuda(FillRandom(out.get(), size, mean, deviation, seed, nullptr));
  return out.Read();
}

TEST_F(FillRandomTest, HasTheMomentsOfFourUniformNumbers) {
  const auto values = Fill(4'000'000, 3.0f, 2.0f, 5);
  double sums[5] = {};
  double with_next = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double z = (values[i] - 3.0) / 2.0;
    ASSERT_LE(std::abs(z), 3.4642);
    for (int power = 1; power <= 4; ++power) {
      sums[power] += std::pow(z, power) / 4e6;
    }
    with_next += i == 0 ? 0 : z * (values[i - 1] - 3.0) / 2.0 / 4e6;
  }
  // Bounds of five standard errors; the fourth moment of Irwin and Hall's four is 3 - 6/5/4.
  EXPECT_NEAR(sums[1], 0, 0.0025);
  EXPECT_NEAR(sums[2], 1, 0.0035);
  EXPECT_NEAR(sums[3], 0, 0.01);
  EXPECT_NEAR(sums[4], 2.7, 0.02);
  EXPECT_NEAR(with_next, 0, 0.0025);
}

TEST_F(FillRandomTest, FollowsTheSeed) {
  const auto values = Fill(10000, 0, 1, 7);
  EXPECT_EQ(Fill(10000, 0, 1, 7), values);
  EXPECT_NE(Fill(10000, 0, 1, 8), values);
  const auto fewer = Fill(777, 0, 1, 7);
  EXPECT_TRUE(std::equal(fewer.begin(), fewer.end(), values.begin()));
}

TEST_F(FillRandomTest, RoundsToSixteenBits) {
  const auto values = Fill(12345, 1, 0.02f, 7);
  for (const GpuType type : {GpuType::kFp16, GpuType::kBf16}) {
    const Device<uint16_t> out(12345);
    test::CheckCuda(FillRandom(type, out.get(), 12345, 1, 0.02f, 7, nullptr));
    EXPECT_EQ(out.Read(), test::Narrow(type, values));
  }
}

TEST_F(FillRandomTest, DoesNothingToNothing) {
  test::CheckCuda(FillRandom(static_cast<float*>(nullptr), 0, 0, 1, 1, nullptr));
  test::CheckCuda(cudaDeviceSynchronize());
}

}  // namespace
}  // namespace ferrite

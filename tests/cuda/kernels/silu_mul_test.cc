#include "cuda/kernels/silu_mul.h"

#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;

class SiluMulTest : public test::GpuTest, public testing::WithParamInterface<GpuType> {};

INSTANTIATE_TEST_SUITE_P(Types, SiluMulTest, testing::Values(GpuType::kFp16, GpuType::kBf16),
                         [](const auto& type) { return test::TypeName(type.param); });

TEST_P(SiluMulTest, MatchesDouble) {
  for (const int32_t width : {1, 7, 8, 136, 1000, 14336}) {
    for (const int32_t rows : {1, 3, 33}) {
      const auto input =
          test::Narrow(GetParam(), test::RandomNormal(size_t{2} * rows * width, rows, 3.0f));
      const Device<uint16_t> gate_up(input);
      const Device<uint16_t> out(size_t{1} * rows * width);
      test::CheckCuda(SiluMul(GetParam(), gate_up.get(), rows, width, out.get(), nullptr));
      const auto values = test::Widen(GetParam(), input);
      std::vector<double> expected;
      for (int32_t row = 0; row < rows; ++row) {
        for (int32_t i = 0; i < width; ++i) {
          const double gate = values[2 * row * width + i];
          expected.push_back(gate / (1 + std::exp(-gate)) * values[(2 * row + 1) * width + i]);
        }
      }
      const auto actual = test::Widen(GetParam(), out.Read());
      EXPECT_LE(test::RelativeError(actual, expected), test::Tolerance(GetParam()))
          << rows << " x " << width;
    }
  }
}

}  // namespace
}  // namespace ferrite

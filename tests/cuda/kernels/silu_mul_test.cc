#include "cuda/kernels/silu_mul.h"

#include <utility>

#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;

// The type, and whether what comes in is fp32.
using Types = std::pair<GpuType, bool>;

class SiluMulTest : public test::GpuTest, public testing::WithParamInterface<Types> {};

INSTANTIATE_TEST_SUITE_P(Types, SiluMulTest,
                         testing::Values(Types{GpuType::kFp16, false}, Types{GpuType::kFp16, true},
                                         Types{GpuType::kBf16, false}, Types{GpuType::kBf16, true}),
                         [](const auto& types) {
                           return test::TypeName(types.param.first) +
                                  (types.param.second ? "OfFp32" : "");
                         });

TEST_P(SiluMulTest, MatchesDouble) {
  const GpuType type = GetParam().first;
  for (const int32_t width : {1, 7, 8, 136, 1000, 14336}) {
    for (const int32_t rows : {1, 3, 33}) {
      const auto exact = test::RandomNormal(size_t{2} * rows * width, rows, 3.0f);
      const auto input = test::Narrow(type, exact);
      const Device<uint16_t> gate_up(input);
      const Device<float> wide(exact);
      const Device<uint16_t> out(size_t{1} * rows * width);
      const bool is_fp32 = GetParam().second;
      test::CheckCuda(SiluMul(type, is_fp32 ? static_cast<const void*>(wide.get()) : gate_up.get(),
                              is_fp32, rows, width, out.get(), nullptr));
      const auto values = is_fp32 ? exact : test::Widen(type, input);
      std::vector<double> expected;
      for (int32_t row = 0; row < rows; ++row) {
        for (int32_t i = 0; i < width; ++i) {
          const double gate = values[2 * row * width + i];
          expected.push_back(gate / (1 + std::exp(-gate)) * values[(2 * row + 1) * width + i]);
        }
      }
      const auto actual = test::Widen(type, out.Read());
      EXPECT_LE(test::RelativeError(actual, expected), test::Tolerance(type))
          << rows << " x " << width;
    }
  }
}

}  // namespace
}  // namespace ferrite

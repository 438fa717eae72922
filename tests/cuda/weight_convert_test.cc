#include "cuda/weight_convert.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tests/engine/model/status_matchers.h"

namespace ferrite {
namespace {

using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

template <typename T>
TensorView View(std::span<const T> values, DType dtype, std::string_view name = "w") {
  return {.name = name,
          .dtype = dtype,
          .shape = {static_cast<int64_t>(values.size())},
          .data = std::as_bytes(values)};
}

template <typename Out, typename In>
std::vector<Out> Convert(const std::vector<In>& values, DType dtype, WeightFormat format) {
  std::vector<Out> out(values.size());
  EXPECT_THAT(ConvertElements(View<In>(values, dtype), 0, static_cast<int64_t>(values.size()),
                              format, out.data()),
              IsOk());
  return out;
}

// Every 16-bit value, and the points between neighbours: on the middle and just beside it.
std::vector<float> HardFloats(uint16_t largest, float (*widen)(uint16_t)) {
  std::vector<float> values;
  for (uint32_t bits = 0; bits <= largest; ++bits) {
    const float value = widen(static_cast<uint16_t>(bits));
    values.push_back(value);
    values.push_back(-value);
    if (bits < largest) {
      const float middle = value / 2 + widen(static_cast<uint16_t>(bits + 1)) / 2;
      for (const float near : {middle, std::nextafter(middle, 0.0f),
                               std::nextafter(middle, std::numeric_limits<float>::infinity())}) {
        values.push_back(near);
        values.push_back(-near);
      }
    }
  }
  return values;
}

float WidenHalf(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
float WidenBf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// The references below are CUDA's own conversions on the host.
TEST(WeightConvertTest, RoundsToHalfAsCudaDoes) {
  const std::vector<float> values = HardFloats(0x7BFF, WidenHalf);
  const auto actual = Convert<uint16_t>(values, DType::kF32, WeightFormat::kFp16);
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(actual[i], __half_as_ushort(__float2half_rn(values[i]))) << values[i];
  }
}

TEST(WeightConvertTest, RoundsToBf16AsCudaDoes) {
  const std::vector<float> values = HardFloats(0x7F7F, WidenBf16);
  const auto actual = Convert<uint16_t>(values, DType::kF32, WeightFormat::kBf16);
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(actual[i], __bfloat16_as_ushort(__float2bfloat16_rn(values[i]))) << values[i];
  }
}

// A double just above the middle of two neighbours rounds up, though as a float it is the middle.
TEST(WeightConvertTest, RoundsDoublesOnce) {
  const std::vector<double> values = {1 + 0x1p-11,
                                      1 + 0x1p-11 + 0x1p-40,
                                      1 + 0x1p-11 - 0x1p-40,
                                      1 + 3 * 0x1p-11 - 0x1p-40,
                                      -1 - 0x1p-11 - 0x1p-40,
                                      0x1p-25 + 0x1p-60,
                                      0x1p-25,
                                      0.1};
  const auto half = Convert<uint16_t>(values, DType::kF64, WeightFormat::kFp16);
  EXPECT_THAT(
      half, ::testing::ElementsAre(0x3C00, 0x3C01, 0x3C00, 0x3C01, 0xBC01, 0x0001, 0x0000, 0x2E66));
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(half[i], __half_as_ushort(__double2half(values[i]))) << values[i];
  }
  const std::vector<double> wide = {1 + 0x1p-8 + 0x1p-40, 1 + 0x1p-8, 1 + 3 * 0x1p-8 - 0x1p-40};
  EXPECT_THAT(Convert<uint16_t>(wide, DType::kF64, WeightFormat::kBf16),
              ::testing::ElementsAre(0x3F81, 0x3F80, 0x3F81));
  EXPECT_THAT(Convert<float>(values, DType::kF64, WeightFormat::kFp32),
              ::testing::ElementsAreArray(std::vector<float>(values.begin(), values.end())));
}

TEST(WeightConvertTest, ConvertsBetweenSixteenBitTypes) {
  std::vector<uint16_t> every_half;
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    every_half.push_back(static_cast<uint16_t>(bits));
    every_half.push_back(static_cast<uint16_t>(bits | 0x8000));
  }
  EXPECT_EQ(Convert<uint16_t>(every_half, DType::kF16, WeightFormat::kFp16), every_half);
  EXPECT_EQ(Convert<uint16_t>(every_half, DType::kBF16, WeightFormat::kBf16), every_half);
  const auto bf16 = Convert<uint16_t>(every_half, DType::kF16, WeightFormat::kBf16);
  const auto fp32 = Convert<float>(every_half, DType::kF16, WeightFormat::kFp32);
  for (size_t i = 0; i < every_half.size(); ++i) {
    const float value = WidenHalf(every_half[i]);
    ASSERT_EQ(fp32[i], value);
    ASSERT_EQ(bf16[i], __bfloat16_as_ushort(__float2bfloat16_rn(value)));
  }
  const std::vector<uint16_t> small = {0x3F80, 0xC2F7, 0x3380, 0x0001};  // 1, -123.5, 2^-24, tiny
  EXPECT_THAT(Convert<uint16_t>(small, DType::kBF16, WeightFormat::kFp16),
              ::testing::ElementsAre(0x3C00, 0xD7B8, 0x0001, 0x0000));
}

TEST(WeightConvertTest, KeepsNaN) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> values = {nan, -nan, std::bit_cast<float>(0x7F800001)};
  for (const uint16_t bits : Convert<uint16_t>(values, DType::kF32, WeightFormat::kFp16)) {
    EXPECT_GT(bits & 0x7FFF, 0x7C00);
  }
  for (const uint16_t bits : Convert<uint16_t>(values, DType::kF32, WeightFormat::kBf16)) {
    EXPECT_GT(bits & 0x7FFF, 0x7F80);
  }
}

TEST(WeightConvertTest, ConvertsARangeOfMisalignedData) {
  std::vector<float> values(10000);
  std::iota(values.begin(), values.end(), -5000.0f);
  std::string bytes(1, '!');  // the data start one byte into the buffer
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  const TensorView view{.name = "w",
                        .dtype = DType::kF32,
                        .shape = {10000},
                        .data = std::as_bytes(std::span(bytes)).subspan(1)};
  std::vector<uint16_t> out(5002, 0xFFFF);
  ASSERT_THAT(ConvertElements(view, 3000, 5001, WeightFormat::kFp16, out.data()), IsOk());
  for (size_t i = 0; i < 5001; ++i) {
    ASSERT_EQ(out[i], __half_as_ushort(__float2half_rn(values[3000 + i])));
  }
  EXPECT_EQ(out[5001], 0xFFFF);
}

TEST(WeightConvertTest, RefusesWhatTheFormatCannotHold) {
  std::vector<float> values(5000, 65504.0f);
  std::vector<uint16_t> out(values.size());
  const auto convert = [&](WeightFormat format) {
    return ConvertElements(View<float>(values, DType::kF32, "layers.3.down"), 0, 5000, format,
                           out.data());
  };
  EXPECT_THAT(convert(WeightFormat::kFp16), IsOk());
  values[4321] = -65505.0f;
  EXPECT_THAT(
      convert(WeightFormat::kFp16),
      IsStatus(kInvalid, AllOf(HasSubstr("tensor 'layers.3.down' has -65505 at element 4321"),
                               HasSubstr("beyond fp16's largest number, 65504"))));
  EXPECT_THAT(convert(WeightFormat::kBf16), IsOk());
  values[4321] = std::numeric_limits<float>::infinity();
  EXPECT_THAT(convert(WeightFormat::kFp16), IsStatus(kInvalid, HasSubstr("has inf")));
  EXPECT_THAT(convert(WeightFormat::kBf16), IsStatus(kInvalid, HasSubstr("has inf")));
  const std::vector<double> huge = {0, 65504.0000001};
  EXPECT_THAT(
      ConvertElements(View<double>(huge, DType::kF64), 0, 2, WeightFormat::kFp16, out.data()),
      IsStatus(kInvalid, HasSubstr("at element 1")));
}

TEST(WeightConvertTest, ValidatesTensors) {
  const std::vector<float> values(6);
  TensorView view = View<float>(values, DType::kF32, "layers.0.up");
  view.shape = {2, 3};
  EXPECT_THAT(ValidateTensor(view), IsOk());
  view.shape = {2, 4};
  EXPECT_THAT(ValidateTensor(view),
              IsStatus(kInvalid, AllOf(HasSubstr("'layers.0.up' of shape [2, 4] and dtype F32"),
                                       HasSubstr("is 32 bytes, its buffer 24"))));
  view.shape = {-2, -3};
  EXPECT_THAT(ValidateTensor(view), IsStatus(kInvalid, HasSubstr("impossible shape [-2, -3]")));
  view.shape = {int64_t{1} << 40, int64_t{1} << 40};
  EXPECT_THAT(ValidateTensor(view), IsStatus(kInvalid, HasSubstr("impossible shape")));
  view.shape = {2, 3};
  view.dtype = DType::kI32;
  EXPECT_THAT(ValidateTensor(view),
              IsStatus(kInvalid, AllOf(HasSubstr("'layers.0.up'"), HasSubstr("got I32"))));
}

}  // namespace
}  // namespace ferrite

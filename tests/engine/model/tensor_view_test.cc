#include "engine/model/tensor_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "tests/testing/safetensors_writer.h"

namespace ferrite {
namespace {

using ::testing::ElementsAre;

// Owns bytes that start `misalignment` past an aligned address.
class Buffer {
 public:
  template <typename T>
  explicit Buffer(const std::vector<T>& elements, size_t misalignment = 0)
      : bytes_(elements.size() * sizeof(T) + misalignment), misalignment_(misalignment) {
    std::memcpy(bytes_.data() + misalignment, elements.data(), elements.size() * sizeof(T));
  }

  TensorView View(DType dtype) const {
    const auto data = std::span(bytes_).subspan(misalignment_);
    return {"t", dtype, {static_cast<int64_t>(data.size() / DTypeSize(dtype))}, data};
  }

 private:
  std::vector<std::byte> bytes_;
  size_t misalignment_;
};

std::vector<float> ToFloats(const TensorView& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.num_elements()));
  ConvertToFloat(tensor, 0, out);
  return out;
}

std::vector<uint16_t> AllSixteenBitValues() {
  std::vector<uint16_t> values(65536);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<uint16_t>(i);
  }
  return values;
}

// IEEE 754 binary interchange formats by their definition, in double.
double FromFields(uint32_t bits, int exponent_bits, int fraction_bits) {
  const int max_exponent = (1 << exponent_bits) - 1;
  const int bias = max_exponent / 2;
  const int exponent = static_cast<int>(bits >> fraction_bits) & max_exponent;
  const uint32_t fraction = bits & ((1u << fraction_bits) - 1);
  const double sign = bits >> (exponent_bits + fraction_bits) ? -1.0 : 1.0;
  if (exponent == max_exponent) {
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::quiet_NaN();
  }
  const double scaled = exponent == 0 ? fraction : fraction + std::ldexp(1.0, fraction_bits);
  return sign * std::ldexp(scaled, std::max(exponent, 1) - bias - fraction_bits);
}

void ExpectMatchesDefinition(DType dtype, int exponent_bits, int fraction_bits) {
  const std::vector<float> floats = ToFloats(Buffer(AllSixteenBitValues(), 1).View(dtype));
  ASSERT_EQ(floats.size(), 65536u);
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const double expected = FromFields(bits, exponent_bits, fraction_bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(floats[bits])) << bits;
    } else {
      ASSERT_EQ(floats[bits], expected) << bits;
      ASSERT_EQ(std::signbit(floats[bits]), std::signbit(expected)) << bits;
    }
  }
}

TEST(TensorViewTest, ConvertsEveryHalf) { ExpectMatchesDefinition(DType::kF16, 5, 10); }

TEST(TensorViewTest, ConvertsEveryBFloat) { ExpectMatchesDefinition(DType::kBF16, 8, 7); }

TEST(TensorViewTest, ConvertsMisalignedFloats) {
  for (size_t misalignment = 0; misalignment < 4; ++misalignment) {
    const Buffer buffer(std::vector<float>{1.5f, -0.0f, 3e38f}, misalignment);
    EXPECT_THAT(ToFloats(buffer.View(DType::kF32)), ElementsAre(1.5f, -0.0f, 3e38f));
  }
}

TEST(TensorViewTest, RoundsDoublesToNearestEven) {
  const double tie_down = 1.0 + 0x1p-24;          // between 1 and 1 + 2^-23
  const double tie_up = 1.0 + 0x1p-23 + 0x1p-24;  // between 1 + 2^-23 and 1 + 2^-22
  const Buffer buffer(std::vector<double>{0.1, tie_down, tie_up, -2.0}, 3);
  EXPECT_THAT(ToFloats(buffer.View(DType::kF64)), ElementsAre(0.1f, 1.0f, 1.0f + 0x1p-22f, -2.0f));
}

TEST(TensorViewTest, ConvertsARange) {
  std::vector<float> values(100);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(i);
  }
  for (const auto& tensor :
       {test::F32Tensor("t", {100}, values), test::F16Tensor("t", {100}, values),
        test::BF16Tensor("t", {100}, values)}) {
    const TensorView view{
        "t", *DTypeFromName(tensor.dtype), {100}, std::as_bytes(std::span(tensor.data))};
    std::vector<float> out(3, -1.0f);
    ConvertToFloat(view, 41, out);
    EXPECT_THAT(out, ElementsAre(41.0f, 42.0f, 43.0f)) << tensor.dtype;
    ConvertToFloat(view, 97, out);
    EXPECT_THAT(out, ElementsAre(97.0f, 98.0f, 99.0f)) << tensor.dtype;
    ConvertToFloat(view, 100, std::span<float>());
  }
}

TEST(TensorViewTest, NeverPassesIntegersOffAsFloats) {
  const Buffer buffer(std::vector<int32_t>{1, 2});
  for (const float value : ToFloats(buffer.View(DType::kI32))) {
    EXPECT_TRUE(std::isnan(value));
  }
}

TEST(TensorViewTest, KnowsEveryDType) {
  const std::vector<std::pair<std::string, size_t>> expected = {
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},
      {"I32", 4}, {"I16", 2}, {"I8", 1},  {"U8", 1},   {"BOOL", 1}};
  for (const auto& [name, size] : expected) {
    const std::optional<DType> dtype = DTypeFromName(name);
    ASSERT_TRUE(dtype.has_value()) << name;
    EXPECT_EQ(DTypeName(*dtype), name);
    EXPECT_EQ(DTypeSize(*dtype), size) << name;
    EXPECT_EQ(IsFloatingPoint(*dtype), name.find('F') != std::string::npos) << name;
  }
  EXPECT_EQ(DTypeFromName("f32"), std::nullopt);
  EXPECT_EQ(DTypeFromName(""), std::nullopt);
}

TEST(TensorViewTest, CountsElements) {
  EXPECT_EQ((TensorView{"scalar", DType::kF32, {}, {}}.num_elements()), 1);
  EXPECT_EQ((TensorView{"empty", DType::kF32, {3, 0}, {}}.num_elements()), 0);
  EXPECT_EQ((TensorView{"big", DType::kU8, {1 << 20, 1 << 20}, {}}.num_elements()),
            int64_t{1} << 40);
}

// The writer's roundings are what other tests build their references on.
TEST(SafetensorsWriterTest, RoundsEveryHalfAndBFloatToItself) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const Buffer all(AllSixteenBitValues());
    const std::vector<float> values = ToFloats(all.View(dtype));
    const auto tensor = dtype == DType::kF16 ? test::F16Tensor("t", {65536}, values)
                                             : test::BF16Tensor("t", {65536}, values);
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      uint16_t written;
      std::memcpy(&written, tensor.data.data() + 2 * bits, 2);
      if (!std::isnan(values[bits])) {
        ASSERT_EQ(written, bits) << DTypeName(dtype);
      }
    }
  }
}

TEST(SafetensorsWriterTest, RoundsTiesToEven) {
  const std::vector<float> values = {2049.0f, 2051.0f, 65519.0f, 65520.0f, 0x1p-25f, 0x3p-25f};
  const auto half = test::F16Tensor("t", {6}, values);
  EXPECT_THAT(ToFloats({"t", DType::kF16, {6}, std::as_bytes(std::span(half.data))}),
              ElementsAre(2048.0f, 2052.0f, 65504.0f, INFINITY, 0.0f, 0x1p-23f));
  const auto bfloat = test::BF16Tensor("t", {2}, std::vector<float>{257.0f, 259.0f});
  EXPECT_THAT(ToFloats({"t", DType::kBF16, {2}, std::as_bytes(std::span(bfloat.data))}),
              ElementsAre(256.0f, 260.0f));
}

}  // namespace
}  // namespace ferrite

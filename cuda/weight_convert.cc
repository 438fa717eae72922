#include "cuda/weight_convert.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace ferrite {
namespace {

constexpr uint32_t kMagnitude = 0x7FFFFFFF;
constexpr uint32_t kInfinity = 0x7F800000;
// Elements converted at a time: what lies between stays in the first-level cache.
constexpr int64_t kBlock = 2048;

// All ones if `condition`. The loops below choose by masks, so that the compiler vectorises them.
uint32_t Mask(bool condition) { return 0u - static_cast<uint32_t>(condition); }

uint16_t ToHalf(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & kMagnitude;
  // The exponent's bias changes from 127 to 15; rounding may carry into the exponent, rightly so.
  const uint32_t normal = (magnitude - (112u << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 rounds to multiples of 2^-24, which are the subnormals.
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3F000000;
  const uint32_t special = 0x7C00 | (Mask(magnitude > kInfinity) & 0x0200);
  const uint32_t is_special = Mask(magnitude >= 0x47800000);
  const uint32_t is_subnormal = Mask(magnitude < 0x38800000);
  const uint32_t result =
      (special & is_special) | (subnormal & is_subnormal) | (normal & ~(is_special | is_subnormal));
  return static_cast<uint16_t>(((bits >> 16) & 0x8000) | result);
}

uint16_t ToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t is_nan = Mask((bits & kMagnitude) > kInfinity);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((rounded & ~is_nan) | ((bits >> 16 | 0x40) & is_nan));
}

// Rounds to the neighbour with an odd last bit unless exact, so that rounding the result again, to
// fewer bits, gives what rounding once would: Boldo and Melquiond, "When double rounding is odd".
float ToFloatOdd(double value) {
  const auto nearest = static_cast<float>(value);
  const auto bits = std::bit_cast<uint32_t>(nearest);
  if (std::isnan(value) || static_cast<double>(nearest) == value || (bits & 1) != 0) {
    return nearest;
  }
  const bool is_below = std::abs(static_cast<double>(nearest)) < std::abs(value);
  return std::bit_cast<float>(is_below ? bits + 1 : bits - 1);
}

bool AnyBeyond(std::span<const float> values, uint32_t limit) {
  uint32_t beyond = 0;
  for (const float value : values) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(value) & kMagnitude;
    beyond |= Mask(magnitude > limit) & Mask(magnitude <= kInfinity);
  }
  return beyond != 0;
}

// The largest finite number of a format.
uint32_t LimitOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kFp16:
      return std::bit_cast<uint32_t>(65504.0f);
    case WeightFormat::kBf16:
      return 0x7F7F0000;
    case WeightFormat::kFp32:
    case WeightFormat::kInt32:
      break;
  }
  return std::bit_cast<uint32_t>(std::numeric_limits<float>::max());
}

absl::Status BeyondError(const TensorView& tensor, int64_t first, std::span<const float> values,
                         WeightFormat format) {
  const float limit = std::bit_cast<float>(LimitOf(format));
  const auto found =
      std::ranges::find_if(values, [limit](float value) { return std::abs(value) > limit; });
  const char* hint = format == WeightFormat::kFp16 ? "; bf16 has the range" : "";
  return absl::InvalidArgumentError(
      absl::StrCat("tensor '", std::string(tensor.name), "' has ", *found, " at element ",
                   first + (found - values.begin()), ", beyond ", WeightFormatName(format),
                   "'s largest number, ", limit, hint));
}

void ReadFloats(const TensorView& tensor, int64_t first, bool round_again, std::span<float> out) {
  if (tensor.dtype != DType::kF64 || !round_again) {
    ConvertToFloat(tensor, first, out);
    return;
  }
  const std::byte* in = tensor.data.data() + first * int64_t{sizeof(double)};
  for (size_t i = 0; i < out.size(); ++i) {
    double value;
    std::memcpy(&value, in + i * sizeof(double), sizeof(double));
    out[i] = ToFloatOdd(value);
  }
}

bool HasFormat(DType dtype, WeightFormat format) {
  return (dtype == DType::kF16 && format == WeightFormat::kFp16) ||
         (dtype == DType::kBF16 && format == WeightFormat::kBf16) ||
         (dtype == DType::kF32 && format == WeightFormat::kFp32) ||
         (dtype == DType::kI32 && format == WeightFormat::kInt32);
}

}  // namespace

const char* WeightFormatName(WeightFormat format) {
  switch (format) {
    case WeightFormat::kFp16:
      return "fp16";
    case WeightFormat::kBf16:
      return "bf16";
    case WeightFormat::kInt32:
      return "int32";
    case WeightFormat::kFp32:
      break;
  }
  return "fp32";
}

absl::Status ValidateTensor(const TensorView& tensor, WeightFormat format) {
  const std::string name(tensor.name);
  const bool is_int = format == WeightFormat::kInt32;
  if (is_int ? tensor.dtype != DType::kI32 : !IsFloatingPoint(tensor.dtype)) {
    return absl::InvalidArgumentError(absl::StrCat("tensor '", name, "' must have dtype ",
                                                   is_int ? "I32" : "F16, BF16, F32 or F64",
                                                   ", got ", std::string(DTypeName(tensor.dtype))));
  }
  auto bytes = static_cast<int64_t>(DTypeSize(tensor.dtype));
  for (const int64_t dimension : tensor.shape) {
    if (dimension < 0 || __builtin_mul_overflow(bytes, dimension, &bytes)) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", name,
                                                     "' has the impossible shape [",
                                                     absl::StrJoin(tensor.shape, ", "), "]"));
    }
  }
  if (static_cast<int64_t>(tensor.data.size()) != bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor '", name, "' of shape [", absl::StrJoin(tensor.shape, ", "),
                     "] and dtype ", std::string(DTypeName(tensor.dtype)), " is ", bytes,
                     " bytes, its buffer ", tensor.data.size()));
  }
  return absl::OkStatus();
}

absl::Status ConvertElements(const TensorView& tensor, int64_t first, int64_t count,
                             WeightFormat format, void* out) {
  if (HasFormat(tensor.dtype, format)) {
    const int64_t size = WeightFormatSize(format);
    std::memcpy(out, tensor.data.data() + first * size, count * size);
    return absl::OkStatus();
  }
  std::array<float, kBlock> block;
  for (int64_t done = 0; done < count; done += kBlock) {
    const auto size = static_cast<size_t>(std::min(kBlock, count - done));
    const bool narrows = format != WeightFormat::kFp32;
    const std::span<float> values =
        narrows ? std::span(block).first(size) : std::span(static_cast<float*>(out) + done, size);
    ReadFloats(tensor, first + done, narrows, values);
    if (AnyBeyond(values, LimitOf(format))) {
      return BeyondError(tensor, first + done, values, format);
    }
    uint16_t* narrow = static_cast<uint16_t*>(out) + done;
    if (format == WeightFormat::kFp16) {
      std::ranges::transform(values, narrow, ToHalf);
    } else if (format == WeightFormat::kBf16) {
      std::ranges::transform(values, narrow, ToBf16);
    }
  }
  return absl::OkStatus();
}

}  // namespace ferrite

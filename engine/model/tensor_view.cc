#include "engine/model/tensor_view.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

namespace ferrite {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

struct DTypeInfo {
  std::string_view name;
  size_t size;
};

// In the order of the enumerators.
constexpr std::array<DTypeInfo, 10> kDTypes = {{{"F64", 8},
                                                {"F32", 4},
                                                {"F16", 2},
                                                {"BF16", 2},
                                                {"I64", 8},
                                                {"I32", 4},
                                                {"I16", 2},
                                                {"I8", 1},
                                                {"U8", 1},
                                                {"BOOL", 1}}};

const DTypeInfo& Info(DType dtype) { return kDTypes[static_cast<size_t>(dtype)]; }

float FromHalf(uint16_t half) {
  constexpr uint32_t kRebias = (127 - 15) << 23;
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t magnitude = half & 0x7FFFu;
  // Infinities and NaNs move the exponent twice: from 31 to 255.
  const uint32_t normal = (magnitude << 13) + (magnitude >= 0x7C00 ? 2 * kRebias : kRebias);
  // A product with a power of two, so that it is exact even where subnormals are flushed.
  const auto integer = static_cast<int32_t>(magnitude);  // Signed ones convert in one instruction.
  const auto subnormal = std::bit_cast<uint32_t>(static_cast<float>(integer) * 0x1p-24f);
  // A mask, because the compiler would make a choice with a product in it a branch.
  const uint32_t is_normal = 0u - static_cast<uint32_t>(magnitude >= 0x0400);
  return std::bit_cast<float>(sign | (normal & is_normal) | (subnormal & ~is_normal));
}

float FromBFloat(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

float FromDouble(double value) { return static_cast<float>(value); }

// The loads are memcpy because the data may be misaligned; the compiler makes them vector loads.
template <typename T, float (*convert)(T)>
void ConvertAll(const std::byte* in, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    T element;
    std::memcpy(&element, in + i * sizeof(T), sizeof(T));
    out[i] = convert(element);
  }
}

}  // namespace

size_t DTypeSize(DType dtype) { return Info(dtype).size; }

std::string_view DTypeName(DType dtype) { return Info(dtype).name; }

std::optional<DType> DTypeFromName(std::string_view name) {
  for (size_t i = 0; i < kDTypes.size(); ++i) {
    if (kDTypes[i].name == name) {
      return static_cast<DType>(i);
    }
  }
  return std::nullopt;
}

bool IsFloatingPoint(DType dtype) { return dtype <= DType::kBF16; }

int64_t TensorView::num_elements() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

void ConvertToFloat(const TensorView& tensor, int64_t first, std::span<float> out) {
  if (out.empty()) {
    return;
  }
  const std::byte* in = tensor.data.data() + static_cast<size_t>(first) * DTypeSize(tensor.dtype);
  switch (tensor.dtype) {
    case DType::kF64:
      return ConvertAll<double, FromDouble>(in, out);
    case DType::kF32:
      std::memcpy(out.data(), in, out.size_bytes());
      return;
    case DType::kF16:
      return ConvertAll<uint16_t, FromHalf>(in, out);
    case DType::kBF16:
      return ConvertAll<uint16_t, FromBFloat>(in, out);
    default:
      // A caller's mistake, since Checkpoint::Get refuses such tensors: make it show.
      std::fill(out.begin(), out.end(), std::numeric_limits<float>::quiet_NaN());
      return;
  }
}

}  // namespace ferrite

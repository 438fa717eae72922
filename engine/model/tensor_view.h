// A tensor in a checkpoint: its type, shape and bytes, owned by someone else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace ferrite {

enum class DType { kF64, kF32, kF16, kBF16, kI64, kI32, kI16, kI8, kU8, kBool };

size_t DTypeSize(DType dtype);            // bytes an element
std::string_view DTypeName(DType dtype);  // "F32", as safetensors spells it
std::optional<DType> DTypeFromName(std::string_view name);
bool IsFloatingPoint(DType dtype);

// A tensor inside a mapped file. Lives as long as its Checkpoint. `data` has the alignment the file
// gives it, which may be less than that of an element.
struct TensorView {
  std::string_view name;
  DType dtype;
  std::vector<int64_t> shape;       // row-major
  std::span<const std::byte> data;  // exactly num_elements() * DTypeSize(dtype) bytes

  int64_t num_elements() const;
};

// Converts a floating-point tensor's elements [first, first + out.size()) to fp32, F64 rounded to
// nearest. The range must lie within the tensor (checked by the caller).
void ConvertToFloat(const TensorView& tensor, int64_t first, std::span<float> out);

}  // namespace ferrite

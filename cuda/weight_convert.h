// Checkpoint elements as the device holds them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "cuda/kernels/kernel_types.h"
#include "engine/model/tensor_view.h"

namespace ferrite {

enum class WeightFormat { kFp16, kBf16, kFp32, kInt32 };

inline WeightFormat FormatOf(GpuType type) {
  return type == GpuType::kFp16 ? WeightFormat::kFp16 : WeightFormat::kBf16;
}

inline constexpr int64_t WeightFormatSize(WeightFormat format) {
  return format == WeightFormat::kFp32 || format == WeightFormat::kInt32 ? 4 : 2;
}

const char* WeightFormatName(WeightFormat format);  // "fp16"

// OK if `tensor` is of a floating-point type, or for kInt32 of type I32, and its data are exactly
// the bytes of its shape; else InvalidArgument naming the tensor, and the types or the numbers.
absl::Status ValidateTensor(const TensorView& tensor, WeightFormat format = WeightFormat::kFp32);

// Writes elements [first, first + count) of a tensor that is valid for `format` to `out`, aligned
// for `format`, rounded once, to nearest even. NaN stays NaN. InvalidArgument naming the tensor,
// the value and the bound if one is larger than the format's largest number; elements already in
// `format` are copied as they are.
absl::Status ConvertElements(const TensorView& tensor, int64_t first, int64_t count,
                             WeightFormat format, void* out);

}  // namespace ferrite

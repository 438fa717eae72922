#include "cuda/product_ways.h"

#include <algorithm>
#include <variant>

#include "cuda/kernels/kernel_types.h"

namespace ferrite {
namespace {

constexpr int64_t kDequantizedUnit = 64;  // outputs

}  // namespace

bool Streams(int32_t rows, bool is_contiguous, const GpuWeight& weight) {
  // They load eight inputs at a time.
  return is_contiguous && rows <= kMaxStreamedRows && weight.inputs() % 8 == 0;
}

bool Streams(int32_t rows, bool is_contiguous, const MarlinWeight&) {
  return is_contiguous && rows <= kMaxStreamedInt4Rows;
}

bool Streams(int32_t, bool, const GpuQuantWeight&) { return false; }

bool StreamsWhole(int32_t rows, const Linear& linear) {
  const bool is_contiguous = rows == 1 || linear.parts().size() == 1;
  return std::ranges::all_of(linear.parts(), [&](const LinearPart& part) {
    return std::visit([&](const auto& weight) { return Streams(rows, is_contiguous, weight); },
                      part.weight);
  });
}

int64_t DequantizedOutputs(int64_t inputs, int64_t outputs) {
  const int64_t row_bytes = inputs * int64_t{kGpuTypeSize};
  const int64_t most = std::max<int64_t>(
      kDequantizedUnit, kMaxDequantizedBytes / row_bytes / kDequantizedUnit * kDequantizedUnit);
  const int64_t times = (outputs + most - 1) / most;
  const int64_t units = (outputs + times * kDequantizedUnit - 1) / (times * kDequantizedUnit);
  return std::min(outputs, units * kDequantizedUnit);
}

// What cuBLAS takes on an H200 for other
// multiples of 32 beyond 384 is as much as for the next of 128, or more.
int32_t RoundedRows(int32_t rows) {
  const int32_t unit = rows <= 64 ? 8 : rows <= 256 ? 16 : rows <= 384 ? 32 : 128;
  return (rows + unit - 1) / unit * unit;
}

}  // namespace ferrite

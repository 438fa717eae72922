#include "cpu/stacked_rows.h"

#include <algorithm>

namespace ferrite {

void StackedRows::ReadWeights(int64_t first, int64_t count, float* out) const {
  for (const LinearTensors& part : parts_) {
    const TensorView& tensor = *part.weight;
    const int64_t taken = std::clamp<int64_t>(tensor.shape[0] - first, 0, count);
    if (taken > 0) {
      const int64_t width = tensor.shape[1];
      ConvertToFloat(tensor, first * width,
                     std::span<float>(out, static_cast<size_t>(taken * width)));
      out += taken * width;
      count -= taken;
    }
    first = std::max<int64_t>(0, first - tensor.shape[0]);
  }
}

void StackedRows::ReadBiases(float* out) const {
  for (const LinearTensors& part : parts_) {
    const int64_t rows = part.weight->shape[0];
    if (part.bias != nullptr) {
      ConvertToFloat(*part.bias, 0, std::span<float>(out, static_cast<size_t>(rows)));
    } else {
      std::fill_n(out, rows, 0.0f);
    }
    out += rows;
  }
}

}  // namespace ferrite

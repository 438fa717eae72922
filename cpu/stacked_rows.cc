#include "cpu/stacked_rows.h"

#include <algorithm>

namespace ferrite {

void StackedRows::ReadWeights(int64_t first, int64_t count, float* out) const {
  for (const LinearTensors& part : parts_) {
    const int64_t taken = std::clamp<int64_t>(part.outputs() - first, 0, count);
    if (taken > 0) {
      part.ReadRows(first, taken, out);
      out += taken * part.inputs();
      count -= taken;
    }
    first = std::max<int64_t>(0, first - part.outputs());
  }
}

void StackedRows::ReadBiases(float* out) const {
  for (const LinearTensors& part : parts_) {
    const int64_t rows = part.outputs();
    if (part.bias != nullptr) {
      ConvertToFloat(*part.bias, 0, std::span<float>(out, static_cast<size_t>(rows)));
    } else {
      std::fill_n(out, rows, 0.0f);
    }
    out += rows;
  }
}

}  // namespace ferrite

// The rows of several tensors, one after the other.
#pragma once

#include <cstdint>
#include <span>

#include "engine/model/model_tensors.h"

namespace ferrite {

class StackedRows {
 public:
  explicit StackedRows(std::span<const LinearTensors> parts) : parts_(parts) {}

  int32_t inputs() const { return static_cast<int32_t>(parts_[0].inputs()); }
  int32_t outputs() const {
    int64_t outputs = 0;
    for (const LinearTensors& part : parts_) {
      outputs += part.outputs();
    }
    return static_cast<int32_t>(outputs);
  }
  bool has_bias() const {
    for (const LinearTensors& part : parts_) {
      if (part.bias != nullptr) {
        return true;
      }
    }
    return false;
  }

  // out[count, inputs] = rows [first, first + count) of the weights.
  void ReadWeights(int64_t first, int64_t count, float* out) const;
  // out[outputs] = the biases, zero for a part that has none.
  void ReadBiases(float* out) const;

 private:
  std::span<const LinearTensors> parts_;
};

}  // namespace ferrite

// A product of activations with 16-bit weights.
#pragma once

#include <cstdint>

namespace ferrite {

// y[rows, outputs] = x[rows, inputs] W^T, all in device memory.
struct GpuMatmulArguments {
  int32_t rows = 0;
  int32_t inputs = 0;
  int32_t outputs = 0;
  const void* x = nullptr;       // of the type
  const void* weight = nullptr;  // [outputs, inputs] of the type, row-major
  void* y = nullptr;
  int32_t y_stride = 0;  // elements between rows of y, at least `outputs`
  bool fp32 = false;     // y is fp32, else of the type
  bool add = false;      // += instead of =
};

}  // namespace ferrite

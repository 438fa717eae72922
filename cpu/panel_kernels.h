// The inner loops of a matrix product with weights packed in panels.
//
// A panel holds kColumns outputs of a weight. In fp32 it is [inputs, kColumns]; in bf16 it is
// [ceil(inputs / 2), kColumns, 2], two neighbouring inputs side by side, so that one load yields
// both as fp32 vectors by a shift and a mask. Columns past a weight's last are zero.
//
// Every output is one chain of fused multiply-adds over its inputs in their order, whatever the
// number of rows and whichever function below computes it: a row's result does not depend on its
// neighbours.
#pragma once

#include <cstdint>

#include "cpu/compute_type.h"
#include "cpu/isa.h"

namespace ferrite {

inline constexpr int32_t kPanelColumns = 32;

// Elements of a panel, padding included.
inline int64_t PanelSize(ComputeType type, int64_t inputs) {
  return (type == ComputeType::kBf16 ? inputs + inputs % 2 : inputs) * kPanelColumns;
}

// Where the panel keeps the weight from `input` to its output `column`.
inline int64_t PanelOffset(ComputeType type, int64_t input, int64_t column) {
  return type == ComputeType::kBf16 ? (input / 2 * kPanelColumns + column) * 2 + input % 2
                                    : input * kPanelColumns + column;
}

// y[rows, columns] = or += x[rows, inputs] times a panel, plus bias[columns] if there is one.
struct PanelProduct {
  const void* panel = nullptr;
  const float* bias = nullptr;
  int32_t inputs = 0;
  int32_t columns = 0;  // 1..kPanelColumns
  const float* x = nullptr;
  int64_t x_stride = 0;  // elements from row to row
  int32_t rows = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
  bool add = false;
};

struct PanelKernels {
  int32_t tile_rows = 0;  // rows that share each load of weights

  void (*multiply)(const PanelProduct& product) = nullptr;

  // For many rows: the panel widened to fp32 once, and x as tiles [inputs, tile_rows], one after
  // the other; x_stride is not read and `rows` is a multiple of tile_rows.
  void (*widen)(const void* panel, int32_t inputs, float* out) = nullptr;
  void (*multiply_tiles)(const PanelProduct& product) = nullptr;
};

// The kernels for panels of `type`; `isa` must not exceed BestIsa().
PanelKernels GetPanelKernels(ComputeType type, Isa isa);

// out[inputs, tile_rows] = the transpose of tile_rows rows of x.
void PackTile(const float* x, int64_t x_stride, int32_t inputs, int32_t tile_rows, float* out);

}  // namespace ferrite

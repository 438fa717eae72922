// Root-mean-square normalisation, https://arxiv.org/abs/1910.07467.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/kernel_types.h"

namespace ferrite {

struct RmsNormArguments {
  GpuType type = GpuType::kFp16;
  float* residual = nullptr;      // [*, hidden] fp32
  const void* delta = nullptr;    // [num_rows, hidden] of `type`, added to residual first; or null
  const int32_t* rows = nullptr;  // [num_rows] which rows of residual (delta must be null); or null
  const float* weight = nullptr;  // [hidden] fp32
  float epsilon = 0;
  // Whether a row's result has the same bits whatever the number of rows.
  bool fixed = false;
  int32_t num_rows = 0;
  int32_t hidden = 0;
  void* out = nullptr;  // [num_rows, hidden] of `type`
};

// residual += delta; out = residual / sqrt(mean(residual^2) + epsilon) * weight, row by row.
cudaError_t RmsNorm(const RmsNormArguments& arguments, cudaStream_t stream);

}  // namespace ferrite

// Products of tens to hundreds of rows with a 4-bit weight, on tensor cores.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "cuda/kernels/int4_weight.h"
#include "cuda/kernels/kernel_types.h"

namespace ferrite {

// y = x W^T + bias. On Hopper weights are scale * (q - zero), rounded once to `type`, as
// DequantizeInt4 gives them: its tensor cores run on while the next weights are decoded, and would
// have to stop for every group. Elsewhere q - zero is exact in 16 bits and its sums over a group
// are scaled in fp32.
struct Int4MatmulArguments {
  GpuType type = GpuType::kFp16;
  int32_t rows = 0;         // at least 1
  const void* x = nullptr;  // [rows, inputs] of `type`, 16-byte aligned
  Int4Weight weight;
  const float* bias = nullptr;  // [outputs] fp32, or null

  enum class Epilogue {
    kStore,  // y[rows, y_stride] of `type`
    kFp32,   // y[rows, y_stride] fp32
    kAdd,    // y[rows, y_stride] fp32 +=
  };
  Epilogue epilogue = Epilogue::kStore;
  void* y = nullptr;     // 8-byte aligned
  int32_t y_stride = 0;  // elements between rows of y, even and at least `outputs`

  // As large as Int4MatmulWorkspaceBytes says, zero at first and left so that it can be used again.
  void* workspace = nullptr;
};

// For any product with that many rows or fewer and at most so many inputs and outputs.
size_t Int4MatmulWorkspaceBytes(int32_t rows, int32_t inputs, int32_t outputs,
                                int32_t num_multiprocessors);

// The same inputs give the same bits.
cudaError_t Int4Matmul(const Int4MatmulArguments& arguments, cudaStream_t stream);

}  // namespace ferrite

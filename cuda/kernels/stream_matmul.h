// Products of few rows with a weight, bound by the reading of the weight.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/kernel_types.h"

namespace ferrite {

// y = epilogue(prologue(x) W^T + bias), W [outputs, inputs] of `type`, row-major.
struct StreamMatmulArguments {
  GpuType type = GpuType::kFp16;
  int32_t rows = 0;     // 1..kMaxStreamRows
  int32_t inputs = 0;   // a multiple of 8
  int32_t outputs = 0;  // rows of W; even for kSiluMul

  // One of the two, 16-byte aligned. With `residual`, x is its RMS norm, worked out on the way in
  // by every block anew: worth it up to about four rows.
  const void* x = nullptr;             // [rows, inputs] of `type`
  const float* residual = nullptr;     // [rows, inputs] fp32, not what kAdd adds to
  const float* norm_weight = nullptr;  // [inputs] fp32
  float epsilon = 0;

  const void* weight = nullptr;  // 16-byte aligned
  const float* bias = nullptr;   // [outputs] fp32, or null

  enum class Epilogue {
    kStore,    // y[rows, outputs] of `type`
    kFp32,     // y[rows, outputs] fp32
    kAdd,      // y[rows, outputs] fp32 += : the residual
    kSiluMul,  // y[rows, outputs / 2] of `type` = silu(first half of outputs) * second half
  };
  Epilogue epilogue = Epilogue::kStore;
  void* y = nullptr;

  // As large as StreamMatmulScratch says. Products on one stream may share both.
  float* partials = nullptr;
  int32_t* counters = nullptr;  // zero at first, and left zero
};

inline constexpr int32_t kMaxStreamRows = 16;

// Elements of `partials` and `counters` that the product, with any epilogue, needs on the current
// device: none where the rows' inputs fit a block's shared memory at once. Pointers are not used.
struct StreamMatmulScratch {
  size_t partials = 0;
  size_t counters = 0;
};
cudaError_t SizeStreamMatmulScratch(const StreamMatmulArguments& arguments,
                                    StreamMatmulScratch* scratch);

// Loads weights before it waits for the kernel ahead of it. The same inputs give the same bits.
cudaError_t StreamMatmul(const StreamMatmulArguments& arguments, cudaStream_t stream);

}  // namespace ferrite

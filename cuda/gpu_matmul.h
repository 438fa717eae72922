// Products of activations with weights: our weight-streaming kernel for few rows, cuBLAS for more.
#pragma once

#include <cublas_v2.h>

#include <memory>

#include "absl/status/statusor.h"
#include "cuda/device_buffer.h"
#include "cuda/kernels/kernel_types.h"
#include "cuda/linear_weight.h"
#include "cuda/stream.h"

namespace ferrite {

// A weight in 16 bits with what belongs to it, in device memory.
struct DenseLinear {
  const void* weight = nullptr;  // [outputs, inputs], row-major
  const float* bias = nullptr;   // [outputs], or null
  int32_t inputs = 0;
  int32_t outputs = 0;
};

// `linear` must be one part in 16 bits.
DenseLinear Dense(const Linear& linear);

// Works on one stream. Everything it needs is allocated up front, so that it can be captured.
class GpuMatmul {
 public:
  // What NVIDIA recommends for Hopper; without it cuBLAS would allocate on its own, in mid-capture.
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

  static absl::StatusOr<GpuMatmul> Create(GpuType type, const Stream& stream);

  // y[rows, outputs] of the type = x[rows, inputs] W^T + b.
  absl::Status Store(const void* x, int32_t rows, const DenseLinear& linear, void* y) const;
  // The same in fp32; with `add`, added to y.
  absl::Status StoreFp32(const void* x, int32_t rows, const DenseLinear& linear, bool add,
                         float* y) const;

 private:
  struct Destroy {
    void operator()(cublasHandle_t handle) const { (void)cublasDestroy(handle); }
  };

  absl::Status Multiply(const void* x, int32_t rows, const DenseLinear& linear, cudaDataType_t out,
                        float beta, void* y) const;

  GpuType type_ = GpuType::kFp16;
  cudaStream_t stream_ = nullptr;
  DeviceMemory workspace_;
  std::unique_ptr<cublasContext, Destroy> handle_;
};

}  // namespace ferrite

// Products of activations with 16-bit weights by cuBLAS.
#pragma once

#include <cublas_v2.h>

#include <memory>

#include "absl/status/statusor.h"
#include "cuda/device_buffer.h"
#include "cuda/kernels/kernel_types.h"
#include "cuda/stream.h"

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

// Works on one stream. Everything it needs is allocated up front, so that it can be captured.
class GpuMatmul {
 public:
  // What NVIDIA recommends for Hopper; without it cuBLAS would allocate on its own, in mid-capture.
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

  static absl::StatusOr<GpuMatmul> Create(GpuType type, const Stream& stream);

  absl::Status Run(const GpuMatmulArguments& arguments) const;

 private:
  struct Destroy {
    void operator()(cublasHandle_t handle) const { (void)cublasDestroy(handle); }
  };

  GpuType type_ = GpuType::kFp16;
  DeviceMemory workspace_;
  std::unique_ptr<cublasContext, Destroy> handle_;
};

}  // namespace ferrite

// Products of activations with 16-bit weights by cuBLAS.
#pragma once

#include <cublas_v2.h>

#include <memory>

#include "absl/status/statusor.h"
#include "cuda/device_buffer.h"
#include "cuda/kernels/kernel_types.h"
#include "cuda/kernels/matmul_arguments.h"
#include "cuda/stream.h"

namespace ferrite {

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

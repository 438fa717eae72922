#include "cuda/gpu_matmul.h"

#include <utility>
#include <variant>

#include "cuda/cuda_status.h"
#include "cuda/kernels/add_bias.h"
#include "engine/status_macros.h"

namespace ferrite {
DenseLinear Dense(const Linear& linear) {
  const GpuWeight& weight = std::get<GpuWeight>(linear.parts().front().weight);
  return {.weight = weight.data(),
          .bias = linear.bias(),
          .inputs = static_cast<int32_t>(weight.inputs()),
          .outputs = static_cast<int32_t>(weight.outputs())};
}

absl::StatusOr<GpuMatmul> GpuMatmul::Create(GpuType type, const Stream& stream) {
  GpuMatmul matmul;
  matmul.type_ = type;
  matmul.stream_ = stream.get();
  RETURN_IF_ERROR(stream.MakeDeviceCurrent());
  ASSIGN_OR_RETURN(matmul.workspace_,
                   DeviceMemory::Create(stream.device(), kWorkspaceBytes, "cuBLAS's workspace"));
  cublasHandle_t handle = nullptr;
  FERRITE_RETURN_IF_CUBLAS_ERROR(cublasCreate(&handle));
  matmul.handle_.reset(handle);
  FERRITE_RETURN_IF_CUBLAS_ERROR(cublasSetStream(handle, stream.get()));
  // After the stream: setting that forgets the workspace.
  FERRITE_RETURN_IF_CUBLAS_ERROR(
      cublasSetWorkspace(handle, matmul.workspace_.data(), kWorkspaceBytes));
  return matmul;
}

// cuBLAS counts by columns: y^T [outputs, rows] = W [outputs, inputs] x^T.
absl::Status GpuMatmul::Multiply(const void* x, int32_t rows, const DenseLinear& linear,
                                 cudaDataType_t out, float beta, void* y) const {
  const cudaDataType_t in = type_ == GpuType::kFp16 ? CUDA_R_16F : CUDA_R_16BF;
  const float alpha = 1.0f;
  return CublasStatus(
      cublasGemmEx(handle_.get(), CUBLAS_OP_T, CUBLAS_OP_N, linear.outputs, rows, linear.inputs,
                   &alpha, linear.weight, in, linear.inputs, x, in, linear.inputs, &beta, y, out,
                   linear.outputs, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "cublasGemmEx");
}

absl::Status GpuMatmul::Store(const void* x, int32_t rows, const DenseLinear& linear,
                              void* y) const {
  RETURN_IF_ERROR(
      Multiply(x, rows, linear, type_ == GpuType::kFp16 ? CUDA_R_16F : CUDA_R_16BF, 0.0f, y));
  if (linear.bias != nullptr) {
    FERRITE_RETURN_IF_CUDA_ERROR(AddBias(type_, linear.bias, rows, linear.outputs, y, stream_));
  }
  return absl::OkStatus();
}

absl::Status GpuMatmul::StoreFp32(const void* x, int32_t rows, const DenseLinear& linear, bool add,
                                  float* y) const {
  RETURN_IF_ERROR(Multiply(x, rows, linear, CUDA_R_32F, add ? 1.0f : 0.0f, y));
  if (linear.bias != nullptr) {
    FERRITE_RETURN_IF_CUDA_ERROR(AddBiasFp32(linear.bias, rows, linear.outputs, y, stream_));
  }
  return absl::OkStatus();
}

}  // namespace ferrite

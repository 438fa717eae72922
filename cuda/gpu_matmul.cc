#include "cuda/gpu_matmul.h"

#include <utility>

#include "cuda/cuda_status.h"
#include "engine/status_macros.h"

namespace ferrite {

absl::StatusOr<GpuMatmul> GpuMatmul::Create(GpuType type, const Stream& stream) {
  GpuMatmul matmul;
  matmul.type_ = type;
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
absl::Status GpuMatmul::Run(const GpuMatmulArguments& arguments) const {
  const cudaDataType_t in = type_ == GpuType::kFp16 ? CUDA_R_16F : CUDA_R_16BF;
  const float alpha = 1.0f;
  const float beta = arguments.add ? 1.0f : 0.0f;
  return CublasStatus(
      cublasGemmEx(handle_.get(), CUBLAS_OP_T, CUBLAS_OP_N, arguments.outputs, arguments.rows,
                   arguments.inputs, &alpha, arguments.weight, in, arguments.inputs, arguments.x,
                   in, arguments.inputs, &beta, arguments.y, arguments.fp32 ? CUDA_R_32F : in,
                   arguments.y_stride, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "cublasGemmEx");
}

}  // namespace ferrite

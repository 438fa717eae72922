// CUDA and cuBLAS errors as absl::Status.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include "absl/status/status.h"

namespace ferrite {

// OK, or "<what>: <CUDA's name and words for it>": ResourceExhausted for out of memory,
// FailedPrecondition for a missing device or a driver too old, Internal for anything else.
absl::Status CudaStatus(cudaError_t error, const char* what);
absl::Status CublasStatus(cublasStatus_t status, const char* what);

}  // namespace ferrite

#define FERRITE_RETURN_IF_CUDA_ERROR(expression) \
  RETURN_IF_ERROR(::ferrite::CudaStatus((expression), #expression))
#define FERRITE_RETURN_IF_CUBLAS_ERROR(expression) \
  RETURN_IF_ERROR(::ferrite::CublasStatus((expression), #expression))

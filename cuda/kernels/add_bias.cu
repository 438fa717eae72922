#include "cuda/kernels/add_bias.h"
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/vector.cuh"

namespace ferrite {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ void AddTo(float bias, float& y) { y += bias; }
template <typename T>
__device__ __forceinline__ void AddTo(float bias, T& y) {
  y = FromFloat<T>(ToFloat(y) + bias);
}

template <typename T>
__global__ void AddBiasKernel(const float* __restrict__ bias, int64_t total, int32_t width, T* y,
                              int32_t y_stride) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  AllowNext();
  WaitForPrevious();
  if (i < total) {
    AddTo(bias[i % width], y[i / width * y_stride + i % width]);
  }
}

template <typename T>
cudaError_t Launch(const float* bias, int32_t rows, int32_t width, void* y, int32_t y_stride,
                   cudaStream_t stream) {
  const int64_t total = int64_t{rows} * width;
  const auto blocks = static_cast<unsigned>((total + kThreads - 1) / kThreads);
  return LaunchOverlapped(AddBiasKernel<T>, blocks, kThreads, 0, stream, bias, total, width,
                          static_cast<T*>(y), y_stride);
}

}  // namespace

cudaError_t AddBias(GpuType type, const float* bias, int32_t rows, int32_t width, void* y,
                    int32_t y_stride, cudaStream_t stream) {
  return type == GpuType::kFp16 ? Launch<__half>(bias, rows, width, y, y_stride, stream)
                                : Launch<__nv_bfloat16>(bias, rows, width, y, y_stride, stream);
}

cudaError_t AddBiasFp32(const float* bias, int32_t rows, int32_t width, float* y, int32_t y_stride,
                        cudaStream_t stream) {
  return Launch<float>(bias, rows, width, y, y_stride, stream);
}

}  // namespace ferrite

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/silu_mul.h"
#include "cuda/kernels/vector.cuh"

namespace ferrite {
namespace {

constexpr int kThreads = 256;

__device__ float Silu(float gate) { return gate / (1.0f + __expf(-gate)); }

template <typename In>
__device__ __forceinline__ void LoadEight(const In* from, float (&out)[8]) {
  if constexpr (sizeof(In) == sizeof(float)) {
    LoadVector(from, reinterpret_cast<float(&)[4]>(out[0]));
    LoadVector(from + 4, reinterpret_cast<float(&)[4]>(out[4]));
  } else {
    LoadVector(from, out);
  }
}

// One thread handles eight neighbours where kVectors, else one element.
template <typename T, typename In, bool kVectors>
__global__ void SiluMulKernel(const In* __restrict__ gate_up, int64_t total, int32_t width,
                              T* __restrict__ out) {
  constexpr int kStep = kVectors ? 8 : 1;
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kStep;
  AllowNext();
  WaitForPrevious();
  if (i >= total) {
    return;
  }
  const In* gate = gate_up + i + i / width * width;
  if constexpr (kVectors) {
    float g[8];
    float u[8];
    LoadEight(gate, g);
    LoadEight(gate + width, u);
    for (int j = 0; j < 8; ++j) {
      g[j] = Silu(g[j]) * u[j];
    }
    StoreVector(g, out + i);
  } else {
    out[i] = FromFloat<T>(Silu(ToFloat(gate[0])) * ToFloat(gate[width]));
  }
}

template <typename T, typename In>
cudaError_t Launch(const void* gate_up, int32_t rows, int32_t width, void* out,
                   cudaStream_t stream) {
  const int64_t total = int64_t{rows} * width;
  const bool vectors = width % 8 == 0;
  const int64_t threads = vectors ? total / 8 : total;
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  return LaunchOverlapped(vectors ? SiluMulKernel<T, In, true> : SiluMulKernel<T, In, false>,
                          blocks, kThreads, 0, stream, static_cast<const In*>(gate_up), total,
                          width, static_cast<T*>(out));
}

template <typename T>
cudaError_t LaunchTyped(const void* gate_up, bool is_fp32, int32_t rows, int32_t width, void* out,
                        cudaStream_t stream) {
  return is_fp32 ? Launch<T, float>(gate_up, rows, width, out, stream)
                 : Launch<T, T>(gate_up, rows, width, out, stream);
}

}  // namespace

cudaError_t SiluMul(GpuType type, const void* gate_up, bool is_fp32, int32_t rows, int32_t width,
                    void* out, cudaStream_t stream) {
  return type == GpuType::kFp16
             ? LaunchTyped<__half>(gate_up, is_fp32, rows, width, out, stream)
             : LaunchTyped<__nv_bfloat16>(gate_up, is_fp32, rows, width, out, stream);
}

}  // namespace ferrite

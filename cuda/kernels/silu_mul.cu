#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/silu_mul.h"
#include "cuda/kernels/vector.cuh"

namespace ferrite {
namespace {

constexpr int kThreads = 256;

__device__ float Silu(float gate) { return gate / (1.0f + __expf(-gate)); }

// One thread handles eight neighbours where kVectors, else one element.
template <typename T, bool kVectors>
__global__ void SiluMulKernel(const T* __restrict__ gate_up, int64_t total, int32_t width,
                              T* __restrict__ out) {
  constexpr int kStep = kVectors ? 8 : 1;
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kStep;
  AllowNext();
  WaitForPrevious();
  if (i >= total) {
    return;
  }
  const T* gate = gate_up + i + i / width * width;
  if constexpr (kVectors) {
    float g[8];
    float u[8];
    LoadVector(gate, g);
    LoadVector(gate + width, u);
    for (int j = 0; j < 8; ++j) {
      g[j] = Silu(g[j]) * u[j];
    }
    StoreVector(g, out + i);
  } else {
    out[i] = FromFloat<T>(Silu(ToFloat(gate[0])) * ToFloat(gate[width]));
  }
}

template <typename T>
cudaError_t Launch(const void* gate_up, int32_t rows, int32_t width, void* out,
                   cudaStream_t stream) {
  const int64_t total = int64_t{rows} * width;
  const bool vectors = width % 8 == 0;
  const int64_t threads = vectors ? total / 8 : total;
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  return LaunchOverlapped(vectors ? SiluMulKernel<T, true> : SiluMulKernel<T, false>, blocks,
                          kThreads, 0, stream, static_cast<const T*>(gate_up), total, width,
                          static_cast<T*>(out));
}

}  // namespace

cudaError_t SiluMul(GpuType type, const void* gate_up, int32_t rows, int32_t width, void* out,
                    cudaStream_t stream) {
  return type == GpuType::kFp16 ? Launch<__half>(gate_up, rows, width, out, stream)
                                : Launch<__nv_bfloat16>(gate_up, rows, width, out, stream);
}

}  // namespace ferrite

#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/plain_matmul.h"
#include "cuda/kernels/vector.cuh"

namespace ferrite {
namespace {

constexpr int kWarps = 8;
constexpr int kLanes = 32;

// Grid: [outputs / kWarps, rows], the rows in strides of the grid.
template <typename T, typename Y>
__global__ void __launch_bounds__(kWarps* kLanes)
    PlainMatmulKernel(const __grid_constant__ GpuMatmulArguments a) {
  AllowNext();
  WaitForPrevious();
  const int lane = threadIdx.x;
  const int output = blockIdx.x * kWarps + threadIdx.y;
  if (output >= a.outputs) {
    return;
  }
  const T* weight = static_cast<const T*>(a.weight) + int64_t{output} * a.inputs;
  for (int row = blockIdx.y; row < a.rows; row += gridDim.y) {
    const T* x = static_cast<const T*>(a.x) + int64_t{row} * a.inputs;
    float sum = 0;
    for (int k = lane; k < a.inputs; k += kLanes) {
      sum = fmaf(ToFloat(x[k]), ToFloat(weight[k]), sum);
    }
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(0xFFFFFFFF, sum, distance);
    }
    if (lane == 0) {
      Y& y = static_cast<Y*>(a.y)[int64_t{row} * a.y_stride + output];
      const float before = a.add ? ToFloat(y) : 0.0f;
      y = FromFloat<Y>(before + sum);
    }
  }
}

template <typename T>
cudaError_t Launch(const GpuMatmulArguments& a, cudaStream_t stream) {
  constexpr int32_t kMostGridRows = 65535;
  const auto kernel = a.fp32 ? PlainMatmulKernel<T, float> : PlainMatmulKernel<T, T>;
  const dim3 grid((a.outputs + kWarps - 1) / kWarps,
                  a.rows < kMostGridRows ? a.rows : kMostGridRows);
  return LaunchOverlapped(kernel, grid, dim3(kLanes, kWarps), 0, stream, a);
}

}  // namespace

cudaError_t PlainMatmul(GpuType type, const GpuMatmulArguments& arguments, cudaStream_t stream) {
  return type == GpuType::kFp16 ? Launch<__half>(arguments, stream)
                                : Launch<__nv_bfloat16>(arguments, stream);
}

}  // namespace ferrite

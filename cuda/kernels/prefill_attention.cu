// Prefill is bound by the tensor cores (prefill_block.cuh).
#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/plain_attention.h"
#include "cuda/kernels/prefill_block.cuh"

namespace ferrite {
namespace {

using attention::BlockAttention;
using attention::kChunk;
using attention::kPrefillThreads;
using attention::MaxWarpTiles;
using attention::Shape;
using attention::Work;

// Grid: [kv heads, tiles of rows]; the last tiles of a sequence, which see most keys, begin first.
template <typename T, int kDim, int kWarpTiles>
__global__ void __launch_bounds__(kPrefillThreads)
    PrefillKernel(const __grid_constant__ AttentionArguments a) {
  extern __shared__ __align__(128) unsigned char shared[];
  AllowNext();
  WaitForPrevious();
  const Work work = attention::FindWork(a, static_cast<int>(gridDim.y - 1 - blockIdx.y),
                                        Shape<kDim, kWarpTiles>::kRows);
  if (work.sequence < 0) {
    return;
  }
  BlockAttention<T, kDim, kWarpTiles> block(a, work, blockIdx.x, shared);
  block.Run();
  block.Store();
}

template <typename T, int kDim, int kWarpTiles>
cudaError_t LaunchTiles(const AttentionArguments& a, int64_t rows, cudaStream_t stream) {
  using S = Shape<kDim, kWarpTiles>;
  const auto kernel = PrefillKernel<T, kDim, kWarpTiles>;
  if (const cudaError_t error = cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes);
      error != cudaSuccess) {
    return error;
  }
  // Each sequence may end with a tile that is not full.
  const auto tiles = static_cast<unsigned>(rows / S::kRows + a.num_sequences);
  return LaunchOverlapped(kernel, dim3(a.kv_heads, tiles), kPrefillThreads, S::kSharedBytes, stream,
                          a);
}

// Below this many full tiles, halves of them balance the multiprocessors better than they cost in
// reuse: three for each of the about 130 of the chips that this is tuned for.
constexpr int64_t kFewTiles = 384;

template <typename T, int kDim>
cudaError_t Launch(const AttentionArguments& a, int32_t num_tokens, cudaStream_t stream) {
  constexpr int kMax = MaxWarpTiles(kDim);
  const int64_t rows = int64_t{num_tokens} * (a.num_heads / a.kv_heads);
  return rows * a.kv_heads < kFewTiles * Shape<kDim, kMax>::kRows
             ? LaunchTiles<T, kDim, 1>(a, rows, stream)
             : LaunchTiles<T, kDim, kMax>(a, rows, stream);
}

template <typename T>
cudaError_t LaunchTyped(const AttentionArguments& a, int32_t num_tokens, cudaStream_t stream) {
  switch (a.block_size % kChunk == 0 ? a.head_dim : 0) {
    case 64:
      return Launch<T, 64>(a, num_tokens, stream);
    case 80:
      return Launch<T, 80>(a, num_tokens, stream);
    case 96:
      return Launch<T, 96>(a, num_tokens, stream);
    case 128:
      return Launch<T, 128>(a, num_tokens, stream);
    case 256:
      return Launch<T, 256>(a, num_tokens, stream);
    default:
      return PlainAttention(a, num_tokens, stream);
  }
}

}  // namespace

cudaError_t PrefillAttention(const AttentionArguments& arguments, int32_t num_tokens,
                             cudaStream_t stream) {
  return arguments.type == GpuType::kFp16
             ? LaunchTyped<__half>(arguments, num_tokens, stream)
             : LaunchTyped<__nv_bfloat16>(arguments, num_tokens, stream);
}

}  // namespace ferrite

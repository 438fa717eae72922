#include "cuda/kernels/embedding.h"

#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/vector.cuh"

namespace ferrite {
namespace {

constexpr int kThreads = 128;

// A block for each (token, part of its row); a thread widens kWidth neighbours.
template <typename T, int kWidth>
__global__ void GatherEmbeddingsKernel(const T* table, TokenSource tokens, int32_t hidden,
                                       float* out) {
  AllowNext();
  WaitForPrevious();
  const int32_t i = (blockIdx.y * kThreads + threadIdx.x) * kWidth;
  if (i >= hidden) {
    return;
  }
  const int32_t row = tokens.input_rows == nullptr ? -1 : tokens.input_rows[blockIdx.x];
  const int32_t token = row < 0 ? tokens.token_ids[blockIdx.x] : tokens.sampled[row];
  const T* from = table + int64_t{token} * hidden + i;
  float* to = out + int64_t{blockIdx.x} * hidden + i;
  if constexpr (kWidth == 4) {
    float values[4];
    LoadVector(from, values);
    StoreVector(values, to);
  } else {
    *to = ToFloat(*from);
  }
}

template <typename T>
cudaError_t Launch(const void* table, const TokenSource& tokens, int32_t num_tokens, int32_t hidden,
                   float* out, cudaStream_t stream) {
  const bool vectors = hidden % 4 == 0;
  const int32_t threads = vectors ? hidden / 4 : hidden;
  const dim3 grid(num_tokens, (threads + kThreads - 1) / kThreads);
  return LaunchOverlapped(vectors ? GatherEmbeddingsKernel<T, 4> : GatherEmbeddingsKernel<T, 1>,
                          grid, kThreads, 0, stream, static_cast<const T*>(table), tokens, hidden,
                          out);
}

}  // namespace

cudaError_t GatherEmbeddings(GpuType type, const void* table, const TokenSource& tokens,
                             int32_t num_tokens, int32_t hidden, float* out, cudaStream_t stream) {
  return type == GpuType::kFp16
             ? Launch<__half>(table, tokens, num_tokens, hidden, out, stream)
             : Launch<__nv_bfloat16>(table, tokens, num_tokens, hidden, out, stream);
}

}  // namespace ferrite

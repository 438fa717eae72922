#include "cuda/kernels/gptq.h"

#include <algorithm>

#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/vector.cuh"

namespace ferrite {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kPerWord = 8;  // 4-bit values in 32 bits
constexpr uint32_t kOnes = 0x11111111;
constexpr int kSymmetricZero = 8;

__device__ __forceinline__ int Nibble(uint32_t word, int shift) {
  return static_cast<int>(word >> shift & 0xF);
}

// What of a group is the same for all its inputs.
struct Group {
  float scale;
  int zero;

  // The difference is a small integer, so that only the conversion to 16 bits rounds.
  __device__ __forceinline__ float Value(int q) const {
    return scale * static_cast<float>(q - zero);
  }
};

__device__ __forceinline__ float ScaleAt(const GptqWeight& weight, int64_t index) {
  return weight.scale_type == GpuType::kFp16
             ? ToFloat(reinterpret_cast<const __half*>(weight.scales)[index])
             : ToFloat(reinterpret_cast<const __nv_bfloat16*>(weight.scales)[index]);
}

__device__ __forceinline__ int ZeroAt(const GptqWeight& weight, int32_t group, int32_t output) {
  if (weight.qzeros == nullptr) {
    return kSymmetricZero;
  }
  const uint32_t word =
      weight.qzeros[int64_t{group} * (weight.outputs / kPerWord) + output / kPerWord];
  // In whole words: what overflows from one value carries into the next.
  return Nibble(word + (weight.zeros_less_one ? kOnes : 0), output % kPerWord * 4);
}

__device__ __forceinline__ Group GroupAt(const GptqWeight& weight, int32_t group, int32_t output) {
  return {ScaleAt(weight, int64_t{group} * weight.outputs + output), ZeroAt(weight, group, output)};
}

__device__ __forceinline__ Group GroupAt(const Int4Weight& weight, int64_t tile_row, int32_t group,
                                         int row) {
  const int64_t index =
      (tile_row * (weight.inputs / weight.group_size) + group) * kInt4TileOutputs + row;
  return {ToFloat(reinterpret_cast<const __half*>(weight.scales)[index]),
          weight.zeros == nullptr ? kSymmetricZero : weight.zeros[index]};
}

// A block has words of so many outputs and rows of words, and turns them over in shared memory:
// outputs lie next to each other in qweight, inputs in `out`.
constexpr int kBlockOutputs = 32;
constexpr int kBlockWords = kThreads / kBlockOutputs;

template <typename T>
__global__ void DequantizeGptqKernel(GptqWeight weight, int32_t first, int32_t count, T* out) {
  __shared__ uint32_t words[kBlockWords][kBlockOutputs + 1];
  AllowNext();
  WaitForPrevious();
  const int32_t word_rows = weight.inputs / kPerWord;
  const int32_t first_row = blockIdx.x * kBlockWords;
  const int32_t first_output = blockIdx.y * kBlockOutputs;
  {
    const int row = threadIdx.x / kBlockOutputs;
    const int output = threadIdx.x % kBlockOutputs;
    if (first_row + row < word_rows && first_output + output < count) {
      words[row][output] =
          weight.qweight[int64_t{first_row + row} * weight.outputs + first + first_output + output];
    }
  }
  __syncthreads();
  const int row = threadIdx.x % kBlockWords;
  const int output = threadIdx.x / kBlockWords;
  if (first_row + row >= word_rows || first_output + output >= count) {
    return;
  }
  const uint32_t word = words[row][output];
  const int32_t input = (first_row + row) * kPerWord;
  const int32_t weight_output = first + first_output + output;
  float values[kPerWord];
  if (weight.g_idx == nullptr && weight.group_size % kPerWord == 0) {
    const Group group = GroupAt(weight, input / weight.group_size, weight_output);
    for (int i = 0; i < kPerWord; ++i) {
      values[i] = group.Value(Nibble(word, 4 * i));
    }
  } else {
    for (int i = 0; i < kPerWord; ++i) {
      const int32_t group =
          weight.g_idx == nullptr ? (input + i) / weight.group_size : weight.g_idx[input + i];
      values[i] = GroupAt(weight, group, weight_output).Value(Nibble(word, 4 * i));
    }
  }
  StoreVector(values, out + int64_t{first_output + output} * weight.inputs + input);
}

// Lane q of four has word j of each of four; then it has word q of lane j of each.
__device__ __forceinline__ void TransposeQuad(uint32_t (&words)[4], int q) {
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = (q & step) != 0;
#pragma unroll
    for (int low = 0; low < 4; ++low) {
      if ((low & step) == 0) {
        const int high = low | step;
        const uint32_t sent = upper ? words[low] : words[high];
        const uint32_t received = __shfl_xor_sync(0xFFFFFFFF, sent, step);
        (upper ? words[low] : words[high]) = received;
      }
    }
  }
}

// A warp has a tile. Each lane gets sixteen neighbours of each of two outputs.
template <typename T>
__global__ void DequantizeInt4Kernel(Int4Weight weight, int32_t first, int32_t count, T* out) {
  AllowNext();
  WaitForPrevious();
  const int32_t tile_columns = weight.inputs / kInt4TileInputs;
  const int32_t column = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (column >= tile_columns) {
    return;
  }
  const int64_t tile_row = first / kInt4TileOutputs + blockIdx.y;
  const int lane = threadIdx.x % kWarp;
  const int q = lane % 4;
  const uint4 loaded = reinterpret_cast<const uint4*>(
      weight.tiles)[(tile_row * tile_columns + column) * kWarp + lane];
  uint32_t words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
  TransposeQuad(words, q);
  const int32_t input = column * kInt4TileInputs + 16 * q;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    const int64_t output = tile_row * kInt4TileOutputs + row - first;
    if (output < 0 || output >= count) {
      continue;
    }
    const Group group = GroupAt(weight, tile_row, input / weight.group_size, row);
    float low[8];
    float high[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      low[2 * i] = group.Value(Nibble(words[i], 4 * half));
      low[2 * i + 1] = group.Value(Nibble(words[i], 4 * half + 16));
      high[2 * i] = group.Value(Nibble(words[i], 4 * half + 8));
      high[2 * i + 1] = group.Value(Nibble(words[i], 4 * half + 24));
    }
    T* to = out + output * weight.inputs + input;
    StoreVector(low, to);
    StoreVector(high, to + 8);
  }
}

// A block has one output, all of whose inputs it puts into x's order in shared memory.
template <typename T>
__global__ void DequantizeOrderedKernel(Int4Weight weight, int32_t first, T* out) {
  extern __shared__ uint4 shared[];
  T* const values = reinterpret_cast<T*>(shared);
  AllowNext();
  WaitForPrevious();
  const int32_t tile_columns = weight.inputs / kInt4TileInputs;
  const int32_t output = first + blockIdx.x;
  const int64_t tile_row = output / kInt4TileOutputs;
  const int row = output % kInt4TileOutputs;
  const int shift = row / 8 * 4;
  // Four lanes of a tile have a row's inputs, and four words each.
  for (int32_t i = threadIdx.x; i < tile_columns * 16; i += kThreads) {
    const int q = i / 4 % 4;
    const int j = i % 4;
    const uint32_t word =
        weight
            .tiles[(tile_row * tile_columns + i / 16) * kInt4TileWords + (row % 8 * 4 + q) * 4 + j];
    const int32_t input = i / 16 * kInt4TileInputs + 16 * j + 2 * q;
    const Group group = GroupAt(weight, tile_row, input / weight.group_size, row);
    const int2 low = *reinterpret_cast<const int2*>(weight.order + input);
    const int2 high = *reinterpret_cast<const int2*>(weight.order + input + 8);
    values[low.x] = FromFloat<T>(group.Value(Nibble(word, shift)));
    values[low.y] = FromFloat<T>(group.Value(Nibble(word, shift + 16)));
    values[high.x] = FromFloat<T>(group.Value(Nibble(word, shift + 8)));
    values[high.y] = FromFloat<T>(group.Value(Nibble(word, shift + 24)));
  }
  __syncthreads();
  uint4* const to = reinterpret_cast<uint4*>(out + int64_t{blockIdx.x} * weight.inputs);
  for (int32_t i = threadIdx.x; i < weight.inputs / 8; i += kThreads) {
    to[i] = shared[i];
  }
}

// A warp has a tile.
__global__ void RepackTilesKernel(GptqWeight weight, const int32_t* order, uint32_t* tiles) {
  WaitForPrevious();
  const int32_t tile_columns = weight.inputs / kInt4TileInputs;
  const int32_t column = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (column >= tile_columns) {
    return;
  }
  const int lane = threadIdx.x % kWarp;
  const int32_t first_output = blockIdx.y * kInt4TileOutputs + lane / 4;
  const int32_t first_input = column * kInt4TileInputs + lane % 4 * 2;
  uint32_t words[4] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t output = first_output + 8 * (i % 2);
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const int32_t place = first_input + 16 * j + 8 * (i / 2) + odd;
        const int32_t input = order == nullptr ? place : order[place];
        const uint32_t word = weight.qweight[int64_t{input / kPerWord} * weight.outputs + output];
        words[j] |= (word >> (4 * (input % kPerWord)) & 0xF) << (4 * i + 16 * odd);
      }
    }
  }
  reinterpret_cast<uint4*>(tiles)[(int64_t{blockIdx.y} * tile_columns + column) * kWarp + lane] =
      make_uint4(words[0], words[1], words[2], words[3]);
}

// A thread has one output's group.
__global__ void RepackGroupsKernel(GptqWeight weight, uint16_t* scales, uint8_t* zeros) {
  WaitForPrevious();
  const int32_t output = blockIdx.x * kThreads + threadIdx.x;
  const int32_t group = blockIdx.y;
  if (output >= weight.outputs) {
    return;
  }
  const int64_t to = (int64_t{output / kInt4TileOutputs} * gridDim.y + group) * kInt4TileOutputs +
                     output % kInt4TileOutputs;
  scales[to] = weight.scales[int64_t{group} * weight.outputs + output];
  if (zeros != nullptr) {
    zeros[to] = static_cast<uint8_t>(ZeroAt(weight, group, output));
  }
}

unsigned Blocks(int64_t items, int64_t each) {
  return static_cast<unsigned>((items + each - 1) / each);
}

template <typename T>
cudaError_t LaunchGptq(const GptqWeight& weight, int32_t first, int32_t count, void* out,
                       cudaStream_t stream) {
  const dim3 grid(Blocks(weight.inputs / kPerWord, kBlockWords), Blocks(count, kBlockOutputs));
  return LaunchOverlapped(DequantizeGptqKernel<T>, grid, kThreads, 0, stream, weight, first, count,
                          static_cast<T*>(out));
}

template <typename T>
cudaError_t LaunchInt4(const Int4Weight& weight, int32_t first, int32_t count, void* out,
                       cudaStream_t stream) {
  if (weight.order == nullptr) {
    const int32_t last = first + count - 1;
    const dim3 grid(Blocks(weight.inputs / kInt4TileInputs, kThreads / kWarp),
                    last / kInt4TileOutputs - first / kInt4TileOutputs + 1);
    return LaunchOverlapped(DequantizeInt4Kernel<T>, grid, kThreads, 0, stream, weight, first,
                            count, static_cast<T*>(out));
  }
  const size_t shared_bytes = sizeof(T) * static_cast<size_t>(weight.inputs);
  if (const cudaError_t error = cudaFuncSetAttribute(DequantizeOrderedKernel<T>,
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     static_cast<int>(shared_bytes));
      error != cudaSuccess) {
    return error;
  }
  return LaunchOverlapped(DequantizeOrderedKernel<T>, static_cast<unsigned>(count), kThreads,
                          shared_bytes, stream, weight, first, static_cast<T*>(out));
}

}  // namespace

cudaError_t DequantizeGptq(const GptqWeight& weight, int32_t first, int32_t count, GpuType type,
                           void* out, cudaStream_t stream) {
  return type == GpuType::kFp16 ? LaunchGptq<__half>(weight, first, count, out, stream)
                                : LaunchGptq<__nv_bfloat16>(weight, first, count, out, stream);
}

cudaError_t DequantizeInt4(const Int4Weight& weight, int32_t first, int32_t count, GpuType type,
                           void* out, cudaStream_t stream) {
  return type == GpuType::kFp16 ? LaunchInt4<__half>(weight, first, count, out, stream)
                                : LaunchInt4<__nv_bfloat16>(weight, first, count, out, stream);
}

cudaError_t RepackGptq(const GptqWeight& weight, const Int4Weight& tiles, cudaStream_t stream) {
  const dim3 grid(Blocks(weight.inputs / kInt4TileInputs, kThreads / kWarp),
                  weight.outputs / kInt4TileOutputs);
  const cudaError_t error = LaunchOverlapped(RepackTilesKernel, grid, kThreads, 0, stream, weight,
                                             tiles.order, const_cast<uint32_t*>(tiles.tiles));
  if (error != cudaSuccess) {
    return error;
  }
  const dim3 group_grid(Blocks(weight.outputs, kThreads), weight.inputs / weight.group_size);
  return LaunchOverlapped(RepackGroupsKernel, group_grid, kThreads, 0, stream, weight,
                          const_cast<uint16_t*>(tiles.scales), const_cast<uint8_t*>(tiles.zeros));
}

}  // namespace ferrite

#include "cuda/kernels/prepare_heads.h"

#include <type_traits>

#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/vector.cuh"

namespace ferrite {
namespace {

constexpr int kThreads = 256;
constexpr int kWarpSize = 32;
constexpr int kMaxHalf = 128;
constexpr int kManyTokens = 256;

// kWidth neighbouring values between memory and registers.
template <typename T, int kWidth>
__device__ __forceinline__ void Load(const T* from, float (&out)[kWidth]) {
  if constexpr (kWidth == 1) {
    out[0] = ToFloat(*from);
  } else if constexpr (kWidth == 8 && sizeof(T) == sizeof(float)) {
    LoadVector(from, reinterpret_cast<float(&)[4]>(out[0]));
    LoadVector(from + 4, reinterpret_cast<float(&)[4]>(out[4]));
  } else {
    LoadVector(from, out);
  }
}

template <typename T, int kWidth>
__device__ __forceinline__ void Store(const float (&values)[kWidth], T* to) {
  if constexpr (kWidth == 1) {
    *to = FromFloat<T>(values[0]);
  } else {
    StoreVector(values, to);
  }
}

// The part of a pair of tables, or of a head's two halves, that one lane holds: chunks of kWidth
// pairs (x[i], x[i + half]), every `lanes`-th chunk.
template <int kWidth>
struct Pairs {
  static constexpr int kChunks = kWidth > 1 ? 1 : kMaxHalf / kWarpSize;

  float low[kChunks][kWidth];
  float high[kChunks][kWidth];
};

template <int kWidth>
struct Place {
  int32_t half;
  int32_t lane;
  int32_t lanes;

  template <typename Visit>
  __device__ __forceinline__ void ForEachChunk(Visit visit) const {
#pragma unroll
    for (int c = 0; c < Pairs<kWidth>::kChunks; ++c) {
      const int32_t i = (lane + c * lanes) * kWidth;
      if (i < half) {
        visit(c, i);
      }
    }
  }

  template <typename T>
  __device__ __forceinline__ void Read(const T* low, const T* high, Pairs<kWidth>& to) const {
    ForEachChunk([&](int c, int32_t i) {
      Load(low + i, to.low[c]);
      Load(high + i, to.high[c]);
    });
  }

  template <typename T>
  __device__ __forceinline__ void Write(const Pairs<kWidth>& from, T* to) const {
    ForEachChunk([&](int c, int32_t i) {
      Store(from.low[c], to + i);
      Store(from.high[c], to + half + i);
    });
  }

  // The sum of squares over the head; all lanes of the warp call this together.
  __device__ __forceinline__ float SumSquares(const Pairs<kWidth>& x) const {
    float squares = 0;
    ForEachChunk([&](int c, int32_t) {
      for (int j = 0; j < kWidth; ++j) {
        squares += x.low[c][j] * x.low[c][j] + x.high[c][j] * x.high[c][j];
      }
    });
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      squares += __shfl_xor_sync(~0u, squares, offset);
    }
    return squares;
  }

  __device__ __forceinline__ void Scale(float scale, const Pairs<kWidth>& weight,
                                        Pairs<kWidth>& x) const {
    ForEachChunk([&](int c, int32_t) {
      for (int j = 0; j < kWidth; ++j) {
        x.low[c][j] *= scale * weight.low[c][j];
        x.high[c][j] *= scale * weight.high[c][j];
      }
    });
  }

  // `turns` has cosines and sines.
  __device__ __forceinline__ void Rotate(const Pairs<kWidth>& turns, Pairs<kWidth>& x) const {
    ForEachChunk([&](int c, int32_t) {
      for (int j = 0; j < kWidth; ++j) {
        const float cosine = turns.low[c][j];
        const float sine = turns.high[c][j];
        const float turned = x.low[c][j] * cosine - x.high[c][j] * sine;
        x.high[c][j] = x.high[c][j] * cosine + x.low[c][j] * sine;
        x.low[c][j] = turned;
      }
    });
  }
};

// `lanes` neighbouring lanes, a power of two, handle one head of one token. Loads are issued as
// early as what they depend on allows: with few tokens, waiting for them is all the time there is.
template <typename T, typename In, int kWidth>
__global__ void PrepareHeadsKernel(PrepareHeadsArguments a, int32_t lanes) {
  const int32_t heads = a.num_heads + 2 * a.kv_heads;
  const int64_t item = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / lanes;
  const bool exists = item < int64_t{a.num_tokens} * heads;
  const int32_t token = exists ? static_cast<int32_t>(item / heads) : 0;
  const int32_t head = exists ? static_cast<int32_t>(item % heads) : 0;
  const bool is_q = head < a.num_heads;
  const bool is_v = head >= a.num_heads + a.kv_heads;
  const Place<kWidth> place = {a.head_dim / 2, static_cast<int32_t>(threadIdx.x) % lanes, lanes};
  const float* norm = is_v ? nullptr : is_q ? a.q_norm : a.k_norm;
  Pairs<kWidth> weight;
  if (norm != nullptr) {
    place.Read(norm, norm + place.half, weight);
  }
  AllowNext();
  WaitForPrevious();
  const int32_t position = a.positions[token];
  const int32_t slot = a.slot_mapping[token];
  const int64_t at = (int64_t{token} * heads + head) * a.head_dim;
  const In* from = std::is_same_v<In, float> ? reinterpret_cast<const In*>(a.raw)
                                             : static_cast<const In*>(a.qkv);
  Pairs<kWidth> x;
  place.template Read<In>(from + at, from + at + place.half, x);
  Pairs<kWidth> turns;
  if (!is_v) {
    const int64_t row = int64_t{position} * place.half;
    place.Read(a.cosines + row, a.sines + row, turns);
  }
  if (a.q_norm != nullptr || a.k_norm != nullptr) {
    const float squares = place.SumSquares(x);
    if (norm != nullptr) {
      place.Scale(rsqrtf(squares / static_cast<float>(a.head_dim) + a.epsilon), weight, x);
    }
  }
  if (!exists || (!is_q && slot < 0)) {
    return;
  }
  if (!is_v) {
    place.Rotate(turns, x);
  }
  T* to = static_cast<T*>(a.qkv) + at;
  if (!is_q) {
    const int32_t kv_head = (head - a.num_heads) % a.kv_heads;
    const int64_t row = int64_t{slot / a.block_size} * a.kv_heads + kv_head;
    to = static_cast<T*>(is_v ? a.v_cache : a.k_cache) +
         (row * a.block_size + slot % a.block_size) * a.head_dim;
  }
  place.Write(x, to);
}

template <typename T, typename In>
cudaError_t Launch(const PrepareHeadsArguments& a, cudaStream_t stream) {
  const int32_t half = a.head_dim / 2;
  // Wide accesses move more, narrow ones have more lanes waiting at once.
  const int width = half % 8 == 0 && a.num_tokens >= kManyTokens ? 8 : half % 4 == 0 ? 4 : 1;
  int32_t lanes = 1;
  while (lanes < kWarpSize && lanes * width < half) {
    lanes *= 2;
  }
  const int64_t heads = int64_t{a.num_tokens} * (a.num_heads + 2 * a.kv_heads);
  const auto blocks = static_cast<unsigned>((heads * lanes + kThreads - 1) / kThreads);
  auto* kernel = width == 8   ? PrepareHeadsKernel<T, In, 8>
                 : width == 4 ? PrepareHeadsKernel<T, In, 4>
                              : PrepareHeadsKernel<T, In, 1>;
  return LaunchOverlapped(kernel, blocks, kThreads, 0, stream, a, lanes);
}

}  // namespace

cudaError_t PrepareHeads(const PrepareHeadsArguments& arguments, cudaStream_t stream) {
  if (arguments.raw != nullptr) {
    return arguments.type == GpuType::kFp16 ? Launch<__half, float>(arguments, stream)
                                            : Launch<__nv_bfloat16, float>(arguments, stream);
  }
  return arguments.type == GpuType::kFp16 ? Launch<__half, __half>(arguments, stream)
                                          : Launch<__nv_bfloat16, __nv_bfloat16>(arguments, stream);
}

}  // namespace ferrite

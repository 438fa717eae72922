#include "cuda/kernels/prepare_heads.h"

#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/vector.cuh"

namespace ferrite {
namespace {

constexpr int kThreads = 256;
constexpr int kWarpSize = 32;
constexpr int kMaxHalf = 128;

// kWidth neighbouring values between memory and registers.
template <typename T, int kWidth>
__device__ __forceinline__ void Load(const T* from, float (&out)[kWidth]) {
  if constexpr (kWidth == 1) {
    out[0] = ToFloat(*from);
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

template <int kWidth>
__device__ __forceinline__ void LoadTable(const float* from, float (&out)[kWidth]) {
  if constexpr (kWidth == 1) {
    out[0] = *from;
  } else {
#pragma unroll
    for (int j = 0; j < kWidth; j += 4) {
      LoadVector(from + j, reinterpret_cast<float(&)[4]>(out[j]));
    }
  }
}

// Where a head of k or v goes, or null if its token has no slot.
template <typename T>
__device__ T* CacheRow(const PrepareHeadsArguments& a, void* cache, int32_t token, int32_t head) {
  const int32_t slot = a.slot_mapping[token];
  if (slot < 0) {
    return nullptr;
  }
  const int64_t row = int64_t{slot / a.block_size} * a.kv_heads + head;
  return static_cast<T*>(cache) + (row * a.block_size + slot % a.block_size) * a.head_dim;
}

// The part of a head that one lane holds: chunks of kWidth pairs (x[i], x[i + half]), every
// `lanes`-th chunk of the half.
template <typename T, int kWidth>
struct HeadPart {
  static constexpr int kChunks = kWidth > 1 ? 1 : kMaxHalf / kWarpSize;

  int32_t half;
  int32_t lane;
  int32_t lanes;
  float low[kChunks][kWidth];
  float high[kChunks][kWidth];

  template <typename Visit>
  __device__ __forceinline__ void ForEachChunk(Visit visit) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int32_t i = (lane + c * lanes) * kWidth;
      if (i < half) {
        visit(i, low[c], high[c]);
      }
    }
  }

  __device__ void Read(const T* from) {
    ForEachChunk([&](int32_t i, auto& x, auto& y) {
      Load(from + i, x);
      Load(from + half + i, y);
    });
  }

  __device__ void Write(T* to) {
    ForEachChunk([&](int32_t i, auto& x, auto& y) {
      Store(x, to + i);
      Store(y, to + half + i);
    });
  }

  // All lanes of the warp call this together.
  __device__ void Normalise(const float* weight, float epsilon) {
    float squares = 0;
    ForEachChunk([&](int32_t, auto& x, auto& y) {
      for (int j = 0; j < kWidth; ++j) {
        squares += x[j] * x[j] + y[j] * y[j];
      }
    });
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      squares += __shfl_xor_sync(~0u, squares, offset);
    }
    if (weight == nullptr) {
      return;
    }
    const float scale = rsqrtf(squares / static_cast<float>(2 * half) + epsilon);
    ForEachChunk([&](int32_t i, auto& x, auto& y) {
      float low_weight[kWidth];
      float high_weight[kWidth];
      LoadTable(weight + i, low_weight);
      LoadTable(weight + half + i, high_weight);
      for (int j = 0; j < kWidth; ++j) {
        x[j] *= scale * low_weight[j];
        y[j] *= scale * high_weight[j];
      }
    });
  }

  __device__ void Rotate(const float* cosines, const float* sines) {
    ForEachChunk([&](int32_t i, auto& x, auto& y) {
      float cosine[kWidth];
      float sine[kWidth];
      LoadTable(cosines + i, cosine);
      LoadTable(sines + i, sine);
      for (int j = 0; j < kWidth; ++j) {
        const float turned = x[j] * cosine[j] - y[j] * sine[j];
        y[j] = y[j] * cosine[j] + x[j] * sine[j];
        x[j] = turned;
      }
    });
  }
};

// `lanes` neighbouring lanes, a power of two, handle one head of one token.
template <typename T, int kWidth>
__global__ void PrepareHeadsKernel(PrepareHeadsArguments a, int32_t lanes) {
  AllowNext();
  WaitForPrevious();
  const int32_t heads = a.num_heads + 2 * a.kv_heads;
  const int64_t item = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / lanes;
  const bool exists = item < int64_t{a.num_tokens} * heads;
  const int32_t token = exists ? static_cast<int32_t>(item / heads) : 0;
  const int32_t head = exists ? static_cast<int32_t>(item % heads) : 0;
  const bool is_q = head < a.num_heads;
  const bool is_v = head >= a.num_heads + a.kv_heads;

  HeadPart<T, kWidth> part = {};
  part.half = a.head_dim / 2;
  part.lane = static_cast<int32_t>(threadIdx.x) % lanes;
  part.lanes = lanes;
  T* from = static_cast<T*>(a.qkv) + (int64_t{token} * heads + head) * a.head_dim;
  part.Read(from);
  if (a.q_norm != nullptr || a.k_norm != nullptr) {
    part.Normalise(is_v ? nullptr : is_q ? a.q_norm : a.k_norm, a.epsilon);
  }
  if (!exists) {
    return;
  }
  if (!is_v) {
    const int64_t row = int64_t{a.positions[token]} * part.half;
    part.Rotate(a.cosines + row, a.sines + row);
  }
  T* to = from;
  if (is_v) {
    to = CacheRow<T>(a, a.v_cache, token, head - a.num_heads - a.kv_heads);
  } else if (!is_q) {
    to = CacheRow<T>(a, a.k_cache, token, head - a.num_heads);
  }
  if (to != nullptr) {
    part.Write(to);
  }
}

template <typename T>
cudaError_t Launch(const PrepareHeadsArguments& a, cudaStream_t stream) {
  const int32_t half = a.head_dim / 2;
  const int width = half % 8 == 0 ? 8 : half % 4 == 0 ? 4 : 1;
  int32_t lanes = 1;
  while (lanes < kWarpSize && lanes * width < half) {
    lanes *= 2;
  }
  const int64_t heads = int64_t{a.num_tokens} * (a.num_heads + 2 * a.kv_heads);
  const auto blocks = static_cast<unsigned>((heads * lanes + kThreads - 1) / kThreads);
  auto* kernel = width == 8   ? PrepareHeadsKernel<T, 8>
                 : width == 4 ? PrepareHeadsKernel<T, 4>
                              : PrepareHeadsKernel<T, 1>;
  return LaunchOverlapped(kernel, blocks, kThreads, 0, stream, a, lanes);
}

}  // namespace

cudaError_t PrepareHeads(const PrepareHeadsArguments& arguments, cudaStream_t stream) {
  return arguments.type == GpuType::kFp16 ? Launch<__half>(arguments, stream)
                                          : Launch<__nv_bfloat16>(arguments, stream);
}

}  // namespace ferrite

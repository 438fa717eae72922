#include "cpu/simd_ops.h"

#include <cmath>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/simd.h"

namespace ferrite {
namespace {

using simd::kLanes;

FERRITE_INLINE void Narrow(float value, float* out) { *out = value; }
FERRITE_INLINE void Narrow(float value, uint16_t* out) { *out = FloatToBf16(value); }

template <int kNative, typename T>
FERRITE_INLINE void RmsNormImpl(const float* x, const float* weight, float epsilon, int64_t n,
                                T* out) {
  using V = simd::Sixteen<kNative>;
  V squares;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    V v;
    v.Load(x + i);
    for (int p = 0; p < V::kParts; ++p) {
      squares.parts[p] += v.parts[p] * v.parts[p];
    }
  }
  float sum = squares.Sum();
  for (; i < n; ++i) {
    sum += x[i] * x[i];
  }
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(n) + epsilon);
  for (i = 0; i + kNative <= n; i += kNative) {
    typename V::Floats v;
    typename V::Floats w;
    simd::Load(x + i, v);
    simd::Load(weight + i, w);
    simd::Store(v * scale * w, out + i);
  }
  for (; i < n; ++i) {
    Narrow(x[i] * scale * weight[i], out + i);
  }
}

template <typename F, typename T>
FERRITE_INLINE void SiluMulVector(const float* gate, const float* up, T* out) {
  F g;
  F u;
  F e;
  simd::Load(gate, g);
  simd::Load(up, u);
  simd::Exp(-g, e);
  simd::Store(g / (1.0f + e) * u, out);
}

template <int kNative, typename T>
FERRITE_INLINE void SiluMulImpl(const float* gate, const float* up, int64_t n, T* out) {
  using F = typename simd::Vector<kNative>::Floats;
  int64_t i = 0;
  for (; i + kNative <= n; i += kNative) {
    SiluMulVector<F>(gate + i, up + i, out + i);
  }
  if (i < n) {
    float tail[2][kNative] = {};
    T plain[kNative];
    std::memcpy(tail[0], gate + i, (n - i) * sizeof(float));
    std::memcpy(tail[1], up + i, (n - i) * sizeof(float));
    SiluMulVector<F>(tail[0], tail[1], plain);
    std::memcpy(out + i, plain, (n - i) * sizeof(T));
  }
}

template <typename T>
struct Functions {
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t n, T* out);
  void (*silu_mul)(const float* gate, const float* up, int64_t n, T* out);
};

#define FERRITE_SIMD_OPS(NAME, TARGET, LANES)                                              \
  template <typename T>                                                                    \
  TARGET void RmsNorm##NAME(const float* x, const float* weight, float epsilon, int64_t n, \
                            T* out) {                                                      \
    RmsNormImpl<LANES>(x, weight, epsilon, n, out);                                        \
  }                                                                                        \
  template <typename T>                                                                    \
  TARGET void SiluMul##NAME(const float* gate, const float* up, int64_t n, T* out) {       \
    SiluMulImpl<LANES>(gate, up, n, out);                                                  \
  }

#if defined(__x86_64__)
FERRITE_SIMD_OPS(Avx512, __attribute__((target("arch=x86-64-v4"))), 16)
FERRITE_SIMD_OPS(Avx2, __attribute__((target("arch=x86-64-v3"))), 8)
#endif
FERRITE_SIMD_OPS(Baseline, , 4)

template <typename T>
Functions<T> Choose() {
#if defined(__x86_64__)
  const Isa isa = BestIsa();
  if (isa == Isa::kAvx512) {
    return {RmsNormAvx512<T>, SiluMulAvx512<T>};
  }
  if (isa == Isa::kAvx2) {
    return {RmsNormAvx2<T>, SiluMulAvx2<T>};
  }
#endif
  return {RmsNormBaseline<T>, SiluMulBaseline<T>};
}

template <typename T>
const Functions<T>& Chosen() {
  static const Functions<T> functions = Choose<T>();
  return functions;
}

}  // namespace

FERRITE_SIMD_CLONES void AddTo(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) {
    y[i] += x[i];
  }
}

void RmsNorm(const float* x, const float* weight, float epsilon, int64_t n, float* out) {
  Chosen<float>().rms_norm(x, weight, epsilon, n, out);
}

void RmsNorm(const float* x, const float* weight, float epsilon, int64_t n, uint16_t* out) {
  Chosen<uint16_t>().rms_norm(x, weight, epsilon, n, out);
}

void SiluMul(const float* gate, const float* up, int64_t n, float* out) {
  Chosen<float>().silu_mul(gate, up, n, out);
}

void SiluMul(const float* gate, const float* up, int64_t n, uint16_t* out) {
  Chosen<uint16_t>().silu_mul(gate, up, n, out);
}

FERRITE_SIMD_CLONES void RotateHeads(const float* cosines, const float* sines, int64_t half,
                                     int64_t heads, float* x) {
  for (int64_t head = 0; head < heads; ++head) {
    float* first = x + head * 2 * half;
    float* second = first + half;
    for (int64_t i = 0; i < half; ++i) {
      const float a = first[i];
      const float b = second[i];
      first[i] = a * cosines[i] - b * sines[i];
      second[i] = b * cosines[i] + a * sines[i];
    }
  }
}

}  // namespace ferrite

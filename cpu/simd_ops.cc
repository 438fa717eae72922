#include "cpu/simd_ops.h"

#include <cmath>

#include "cpu/simd.h"

namespace ferrite {
namespace {

using simd::Floats;
using simd::kLanes;

FERRITE_INLINE void Narrow(float value, float* out) { *out = value; }
FERRITE_INLINE void Narrow(float value, uint16_t* out) { *out = FloatToBf16(value); }

template <typename T>
FERRITE_INLINE void RmsNormImpl(const float* x, const float* weight, float epsilon, int64_t n,
                                T* out) {
  Floats squares = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Floats v;
    simd::Load(x + i, v);
    squares += v * v;
  }
  float sum = simd::Sum(squares);
  for (; i < n; ++i) {
    sum += x[i] * x[i];
  }
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(n) + epsilon);
  for (i = 0; i + kLanes <= n; i += kLanes) {
    Floats v;
    Floats w;
    simd::Load(x + i, v);
    simd::Load(weight + i, w);
    simd::Store(v * scale * w, out + i);
  }
  for (; i < n; ++i) {
    Narrow(x[i] * scale * weight[i], out + i);
  }
}

FERRITE_INLINE void Silu(const Floats& gate, const Floats& up, Floats& out) {
  Floats e;
  simd::Exp(-gate, e);
  out = gate / (1.0f + e) * up;
}

template <typename T>
FERRITE_INLINE void SiluMulImpl(const float* gate, const float* up, int64_t n, T* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Floats g;
    Floats u;
    simd::Load(gate + i, g);
    simd::Load(up + i, u);
    Silu(g, u, g);
    simd::Store(g, out + i);
  }
  if (i < n) {
    float tail[2][kLanes] = {};
    std::memcpy(tail[0], gate + i, (n - i) * sizeof(float));
    std::memcpy(tail[1], up + i, (n - i) * sizeof(float));
    Floats g;
    Floats u;
    simd::Load(tail[0], g);
    simd::Load(tail[1], u);
    Silu(g, u, g);
    simd::Store(g, tail[0]);
    for (int lane = 0; i + lane < n; ++lane) {
      Narrow(tail[0][lane], out + i + lane);
    }
  }
}

}  // namespace

FERRITE_SIMD_CLONES void AddTo(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) {
    y[i] += x[i];
  }
}

FERRITE_SIMD_CLONES void RmsNorm(const float* x, const float* weight, float epsilon, int64_t n,
                                 float* out) {
  RmsNormImpl(x, weight, epsilon, n, out);
}

FERRITE_SIMD_CLONES void RmsNorm(const float* x, const float* weight, float epsilon, int64_t n,
                                 uint16_t* out) {
  RmsNormImpl(x, weight, epsilon, n, out);
}

FERRITE_SIMD_CLONES void SiluMul(const float* gate, const float* up, int64_t n, float* out) {
  SiluMulImpl(gate, up, n, out);
}

FERRITE_SIMD_CLONES void SiluMul(const float* gate, const float* up, int64_t n, uint16_t* out) {
  SiluMulImpl(gate, up, n, out);
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

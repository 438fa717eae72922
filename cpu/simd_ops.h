// The row operations of a transformer, vectorised. bf16 is passed as its 16 bits.
#pragma once

#include <bit>
#include <cstdint>

namespace ferrite {

inline float Bf16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Rounds to nearest even; NaN stays NaN.
inline uint16_t FloatToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (value != value) {
    return static_cast<uint16_t>(bits >> 16 | 0x40);
  }
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// y[n] += x[n].
void AddTo(const float* x, int64_t n, float* y);

// out[n] = x[n] / sqrt(mean(x^2) + epsilon) * weight[n].
void RmsNorm(const float* x, const float* weight, float epsilon, int64_t n, float* out);
void RmsNorm(const float* x, const float* weight, float epsilon, int64_t n, uint16_t* out);

// out[n] = silu(gate[n]) * up[n], with silu(g) = g / (1 + e^-g).
void SiluMul(const float* gate, const float* up, int64_t n, float* out);
void SiluMul(const float* gate, const float* up, int64_t n, uint16_t* out);

// Rotates the pairs (x[i], x[i + half]) of `heads` consecutive heads of 2 * half by the angles
// whose cosines and sines are [half], in place.
void RotateHeads(const float* cosines, const float* sines, int64_t half, int64_t heads, float* x);

}  // namespace ferrite

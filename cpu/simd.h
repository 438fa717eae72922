// Sixteen-lane arithmetic that the compiler maps to whatever vectors the machine has.
//
// Functions marked FERRITE_SIMD_CLONES are compiled for AVX-512, AVX2 and the baseline, and picked
// when the program is loaded; everything they call for each element must be FERRITE_INLINE to be
// compiled along with them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Sanitizers instrument the resolvers, which run before the sanitizer does.
#define FERRITE_SIMD_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FERRITE_SIMD_CLONES
#endif
#define FERRITE_INLINE [[gnu::always_inline]] inline

namespace ferrite::simd {

// Vectors of as many lanes as an instruction set has. (The compiler splits wider ones badly.)
template <int kLanes>
struct Vector {
  using Floats [[gnu::vector_size(kLanes * 4)]] = float;
  using Ints [[gnu::vector_size(kLanes * 4)]] = int32_t;
  using Words [[gnu::vector_size(kLanes * 4)]] = uint32_t;
};

inline constexpr int kLanes = 16;

using Floats = Vector<kLanes>::Floats;
using Ints = Vector<kLanes>::Ints;
using Words = Vector<kLanes>::Words;
using Halves = uint16_t __attribute__((vector_size(32)));

// All of these take and return vectors through references, because how vectors are passed to
// functions differs between the clones.
FERRITE_INLINE void Load(const float* from, Floats& to) { std::memcpy(&to, from, sizeof(to)); }

FERRITE_INLINE void Load(const uint16_t* from, Floats& to) {
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  const Words words = __builtin_convertvector(halves, Words) << 16;
  std::memcpy(&to, &words, sizeof(to));
}

FERRITE_INLINE void Store(const Floats& from, float* to) { std::memcpy(to, &from, sizeof(from)); }

// Rounds to nearest even; NaN stays NaN.
FERRITE_INLINE void Store(const Floats& from, uint16_t* to) {
  Words words;
  std::memcpy(&words, &from, sizeof(words));
  const Words rounded = (words + 0x7FFFu + ((words >> 16) & 1u)) >> 16;
  const Words nan = (words >> 16) | 0x40u;
  const Words chosen = from == from ? rounded : nan;
  const Halves halves = __builtin_convertvector(chosen, Halves);
  std::memcpy(to, &halves, sizeof(halves));
}

// e^x to about 2 ulp, for vectors of any width: 2^n times a polynomial over |r| <= ln(2)/2. Below
// -87 it is e^-87, above 88 it is e^88; e^0 is exactly 1.
template <typename F>
FERRITE_INLINE void Exp(const F& input, F& output) {
  using I = typename Vector<sizeof(F) / sizeof(float)>::Ints;
  F x = input < -87.0f ? F{} - 87.0f : input;
  x = x > 88.0f ? F{} + 88.0f : x;
  // Adding and removing 1.5 * 2^23 rounds to an integer.
  const F n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  F p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const I exponent = (__builtin_convertvector(n, I) + 127) << 23;
  F scale;
  std::memcpy(&scale, &exponent, sizeof(scale));
  output = p * scale;
}

// The lanes, with those `kDistance` apart swapped.
template <int kDistance>
FERRITE_INLINE void Swap(const Floats& from, Floats& to) {
  const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  to = __builtin_shuffle(from, lanes ^ kDistance);
}

// The sum of the lanes, always in the same order.
FERRITE_INLINE float Sum(const Floats& x) {
  Floats sum = x;
  Floats swapped;
  Swap<8>(sum, swapped);
  sum += swapped;
  Swap<4>(sum, swapped);
  sum += swapped;
  Swap<2>(sum, swapped);
  sum += swapped;
  Swap<1>(sum, swapped);
  sum += swapped;
  return sum[0];
}

FERRITE_INLINE float Max(const Floats& x) {
  Floats max = x;
  Floats swapped;
  Swap<8>(max, swapped);
  max = max > swapped ? max : swapped;
  Swap<4>(max, swapped);
  max = max > swapped ? max : swapped;
  Swap<2>(max, swapped);
  max = max > swapped ? max : swapped;
  Swap<1>(max, swapped);
  max = max > swapped ? max : swapped;
  return max[0];
}

}  // namespace ferrite::simd

// Arithmetic on vectors of as many lanes as an instruction set has.
//
// Functions marked FERRITE_SIMD_CLONES are compiled for AVX-512, AVX2 and the baseline, and picked
// when the program is loaded. Everything that a function for one instruction set calls for each
// element must be FERRITE_INLINE to be compiled along with it.
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
  using Halves [[gnu::vector_size(kLanes * 2)]] = uint16_t;
};

inline constexpr int kLanes = 16;

using Floats = Vector<kLanes>::Floats;
using Words = Vector<kLanes>::Words;

// These take vectors of any width, and through references, because how vectors are passed to
// functions differs between instruction sets.
template <typename F>
FERRITE_INLINE void Load(const float* from, F& to) {
  std::memcpy(&to, from, sizeof(to));
}

template <typename F>
FERRITE_INLINE void Store(const F& from, float* to) {
  std::memcpy(to, &from, sizeof(from));
}

// Rounds to nearest even; NaN stays NaN.
template <typename F>
FERRITE_INLINE void Store(const F& from, uint16_t* to) {
  using Lanes = Vector<sizeof(F) / sizeof(float)>;
  typename Lanes::Words words;
  std::memcpy(&words, &from, sizeof(words));
  const typename Lanes::Words rounded = (words + 0x7FFFu + ((words >> 16) & 1u)) >> 16;
  const typename Lanes::Words nan = (words >> 16) | 0x40u;
  const typename Lanes::Words chosen = from == from ? rounded : nan;
  const auto halves = __builtin_convertvector(chosen, typename Lanes::Halves);
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

// Sixteen lanes in registers of as many as an instruction set has, so that sums over lanes are the
// same with all of them.
template <int kNativeLanes>
struct Sixteen {
  using Floats = typename Vector<kNativeLanes>::Floats;
  static constexpr int kNative = kNativeLanes;
  static constexpr int kParts = kLanes / kNativeLanes;
  Floats parts[kParts] = {};

  FERRITE_INLINE void Load(const float* from) {
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
      simd::Load(from + p * kNative, parts[p]);
    }
  }

  template <typename T>
  FERRITE_INLINE void Store(T* to) const {
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
      simd::Store(parts[p], to + p * kNative);
    }
  }

  // The sum of the lanes, always in the same order.
  FERRITE_INLINE float Sum() const {
    float lanes[kLanes];
    Store(lanes);
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      for (int lane = 0; lane < distance; ++lane) {
        lanes[lane] += lanes[lane + distance];
      }
    }
    return lanes[0];
  }
};

}  // namespace ferrite::simd

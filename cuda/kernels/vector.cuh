// 16-bit values in registers: conversions, and sixteen bytes at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace ferrite {

__device__ __forceinline__ float ToFloat(float value) { return value; }
__device__ __forceinline__ float ToFloat(__half value) { return __half2float(value); }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T FromFloat(float value);
template <>
__device__ __forceinline__ float FromFloat<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half FromFloat<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 FromFloat<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

__device__ __forceinline__ float2 ToFloat2(__half2 value) { return __half22float2(value); }
__device__ __forceinline__ float2 ToFloat2(__nv_bfloat162 value) {
  return __bfloat1622float2(value);
}

template <typename T>
struct PairOf;
template <>
struct PairOf<__half> {
  using Type = __half2;
};
template <>
struct PairOf<__nv_bfloat16> {
  using Type = __nv_bfloat162;
};

__device__ __forceinline__ __half2 FromFloat2(float2 value, __half2*) {
  return __float22half2_rn(value);
}
__device__ __forceinline__ __nv_bfloat162 FromFloat2(float2 value, __nv_bfloat162*) {
  return __float22bfloat162_rn(value);
}

// Eight values at a 16-byte aligned address.
template <typename T>
__device__ __forceinline__ void Unpack(const uint4& bits, float (&out)[8]) {
  using Pair = typename PairOf<T>::Type;
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = ToFloat2(reinterpret_cast<const Pair&>(words[i]));
    out[2 * i] = pair.x;
    out[2 * i + 1] = pair.y;
  }
}

template <typename T>
__device__ __forceinline__ void LoadVector(const T* from, float (&out)[8]) {
  Unpack<T>(*reinterpret_cast<const uint4*>(from), out);
}

template <typename T>
__device__ __forceinline__ void StoreVector(const float (&values)[8], T* to) {
  using Pair = typename PairOf<T>::Type;
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Pair pair =
        FromFloat2(make_float2(values[2 * i], values[2 * i + 1]), static_cast<Pair*>(nullptr));
    words[i] = reinterpret_cast<const uint32_t&>(pair);
  }
  *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// Four values, 16-bit at an 8-byte aligned address or fp32 at a 16-byte aligned one.
template <typename T>
__device__ __forceinline__ void LoadVector(const T* from, float (&out)[4]) {
  using Pair = typename PairOf<T>::Type;
  const uint2 bits = *reinterpret_cast<const uint2*>(from);
  const float2 first = ToFloat2(reinterpret_cast<const Pair&>(bits.x));
  const float2 second = ToFloat2(reinterpret_cast<const Pair&>(bits.y));
  out[0] = first.x;
  out[1] = first.y;
  out[2] = second.x;
  out[3] = second.y;
}
template <>
__device__ __forceinline__ void LoadVector<float>(const float* from, float (&out)[4]) {
  const float4 values = *reinterpret_cast<const float4*>(from);
  out[0] = values.x;
  out[1] = values.y;
  out[2] = values.z;
  out[3] = values.w;
}

template <typename T>
__device__ __forceinline__ void StoreVector(const float (&values)[4], T* to) {
  using Pair = typename PairOf<T>::Type;
  const Pair first = FromFloat2(make_float2(values[0], values[1]), static_cast<Pair*>(nullptr));
  const Pair second = FromFloat2(make_float2(values[2], values[3]), static_cast<Pair*>(nullptr));
  *reinterpret_cast<uint2*>(to) = make_uint2(reinterpret_cast<const uint32_t&>(first),
                                             reinterpret_cast<const uint32_t&>(second));
}
template <>
__device__ __forceinline__ void StoreVector<float>(const float (&values)[4], float* to) {
  *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
}

}  // namespace ferrite

// What the attention kernels share: tensor-core products of 16-bit tiles, copies of sixteen cached
// keys to shared memory, and the running softmax.
//
// Fragment layouts are those of mma.m16n8k16 and ldmatrix in the PTX ISA: with group = lane / 4 and
// pair = 2 * (lane % 4), an accumulator holds (group, pair), (group, pair + 1), (group + 8, pair),
// (group + 8, pair + 1).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/kernels/attention.h"
#include "cuda/kernels/vector.cuh"

namespace ferrite::attention {

inline constexpr int kChunk = 16;  // keys that lie together in the cache, whatever the block size
inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;
// Stands for "no maximum yet": finite, so that differences of two of them are not NaN.
inline constexpr float kNoMaximum = -1e30f;
// The running maximum may lag behind the true one by 2^8, which 16-bit probabilities and fp32 sums
// bear without loss; so it hardly ever moves, and sums hardly ever need scaling.
inline constexpr float kMaximumSlack = 8.0f;

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Sixteen bytes from global to shared memory, in the background; zeros where !valid.
__device__ __forceinline__ void CopyAsync(uint32_t to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `kPending` of this thread's latest groups are under way.
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void StoreShared(uint32_t to, uint16_t value) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(value) : "memory");
}
__device__ __forceinline__ void StoreShared(uint32_t to, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

__device__ __forceinline__ void LoadMatrices(uint32_t (&m)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void LoadTransposed(uint32_t (&m)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

// The transpose of an 8x8 matrix of 16-bit values spread over a warp.
__device__ __forceinline__ uint32_t Transpose(uint32_t matrix) {
  uint32_t out;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(matrix));
  return out;
}

// c += a b, [16, 8] += [16, 16] [16, 8].
template <typename T>
__device__ __forceinline__ void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1);
template <>
__device__ __forceinline__ void MultiplyAdd<__half>(float (&c)[4], const uint32_t (&a)[4],
                                                    uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void MultiplyAdd<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4],
                                                           uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <typename T>
__device__ __forceinline__ uint32_t Pack(float low, float high) {
  using Pair = typename PairOf<T>::Type;
  const Pair pair = FromFloat2(make_float2(low, high), static_cast<Pair*>(nullptr));
  return reinterpret_cast<const uint32_t&>(pair);
}

// The barrier of a cluster's threads that have not exited; shared memory written before it is seen
// by all of them after it. Clusters exist from sm_90 on.
__device__ __forceinline__ void SyncCluster() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
#endif
}

// A value of another block of the cluster, by this block's address of the same variable.
__device__ __forceinline__ float LoadFromBlock(const float* mine, int rank) {
  float value = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(SharedAddress(mine)), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
#endif
  return value;
}

// 2^x, flushing to zero below the normal range.
__device__ __forceinline__ float Exp2(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

// Rows of kDim 16-bit values in shared memory such that eight rows' same sixteen bytes lie in
// different banks: by exclusive or where the row is a multiple of 128 bytes, by padding elsewhere.
template <int kDim>
struct TileRows {
  static constexpr bool kSwizzle = kDim % 64 == 0;
  static constexpr int kVectors = kDim / 8;
  static constexpr int kStride = (kDim + (kSwizzle ? 0 : 8)) * 2;  // bytes

  // Byte offset of the vector-th sixteen bytes of a row.
  static __device__ __forceinline__ uint32_t Offset(int row, int vector) {
    return row * kStride + (kSwizzle ? vector ^ (row & 7) : vector) * 16;
  }
};

// One warp starts the copy of kChunk keys' rows, [kChunk, kDim] and contiguous; rows from num_valid
// on become zeros, since what was never written may be NaN, and zero times NaN is NaN.
template <int kDim, typename T>
__device__ __forceinline__ void CopyChunk(uint32_t to, const T* from, int num_valid, int lane) {
  using Rows = TileRows<kDim>;
#pragma unroll
  for (int i = 0; i < kChunk * Rows::kVectors / 32; ++i) {
    const int vector = i * 32 + lane;
    const int row = vector / Rows::kVectors;
    CopyAsync(to + Rows::Offset(row, vector % Rows::kVectors), from + vector * 8, row < num_valid);
  }
}

// Where the chunk-th kChunk keys of a sequence's kv head lie in the cache, in chunks.
__device__ __forceinline__ int32_t CacheChunk(const int32_t* block_table, int chunk, int kv_heads,
                                              int kv_head, int chunks_per_block) {
  const int32_t block = block_table[chunk / chunks_per_block];
  return (block * kv_heads + kv_head) * chunks_per_block + chunk % chunks_per_block;
}

}  // namespace ferrite::attention

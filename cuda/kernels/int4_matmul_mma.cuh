// The 4-bit product by warps' own instructions (mma), on any chip from sm_80 on.
#pragma once

#include "cuda/kernels/int4_matmul_parts.cuh"

namespace ferrite::int4_matmul {

// A warp covers 64 outputs, in four tiles, by kRowTiles times 8 rows of x. Warps share out a
// block's outputs, its rows, and the inputs of a step, 64 each.
inline constexpr int kWarpTiles = 4;

template <int kOutputWarps_, int kRowWarps_, int kInputWarps_, int kRowTiles_, int kStages_,
          int kMinBlocks_>
struct MmaShape {
  static constexpr int kOutputWarps = kOutputWarps_;
  static constexpr int kRowWarps = kRowWarps_;
  static constexpr int kInputWarps = kInputWarps_;
  static constexpr int kStepTiles = kInputWarps;  // of inputs, in a step
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kStages = kStages_;
  static constexpr int kAhead = kStages - 1;
  static constexpr int kMinBlocks = kMinBlocks_;

  static constexpr int kSumWarps = kOutputWarps * kRowWarps;  // that have sums of their own
  static constexpr int kWarps = kSumWarps * kInputWarps;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTiles = kOutputWarps * kWarpTiles;
  static constexpr int kOutputs = kTiles * kInt4TileOutputs;
  static constexpr int kRows = kRowWarps * kRowTiles * 8;
  static constexpr int kFragments = kSumWarps * kWarpTiles * kRowTiles;  // of 16 x 8 sums
};

// Two 8 x 8 matrices of the rows at `from` and two of the eight rows after them: what a lane holds
// of two second operands of mma.m16n8k16.
__device__ __forceinline__ void LoadOperands(uint32_t from, uint32_t (&to)[2][2]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0][0]), "=r"(to[0][1]), "=r"(to[1][0]), "=r"(to[1][1])
               : "r"(from)
               : "memory");
}

// A warp's sums, 64 outputs by kRowTiles times 8 rows. They are in units of the present group's
// scale and are converted when the next group begins, so that products add to them straight away.
template <typename T, typename S>
class WarpSums {
 public:
  __device__ static __forceinline__ void BeforeBarrier() {}

  __device__ __forceinline__ void Clear() {
    group_ = -1;
#pragma unroll
    for (int tile = 0; tile < kWarpTiles; ++tile) {
      scales_[tile][0] = scales_[tile][1] = 1;
#pragma unroll
      for (int i = 0; i < S::kRowTiles; ++i) {
        sums_[tile][i] = make_float4(0, 0, 0, 0);
      }
    }
  }

  // Adds the product of the warp's part of a step.
  __device__ __forceinline__ void Add(const Plan& plan, bool has_zeros, uint32_t stage, int step) {
    const int input = threadIdx.x / 32 / S::kSumWarps;
    const int index = step * S::kStepTiles + input;
    if (index >= plan.input_tiles) {
      return;
    }
    const int lane = threadIdx.x % 32;
    const int warp_tile = threadIdx.x / 32 % S::kOutputWarps * kWarpTiles;
    const int first_row = threadIdx.x / 32 / S::kOutputWarps % S::kRowWarps * S::kRowTiles * 8;
    uint4 words[kWarpTiles];
#pragma unroll
    for (int tile = 0; tile < kWarpTiles; ++tile) {
      words[tile] =
          LoadShared(stage + (((warp_tile + tile) * S::kInputWarps + input) * 32 + lane) * 16);
    }
    const int row = first_row + lane / 16 * 8 + lane % 8;
    const uint32_t x = stage + Stage<S>::kXAt + (input * S::kRows + row) * kRowBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int group = plan.group_of(2 * index + half);
      if (group != group_) {
        ChangeGroup(stage, (input * 2 + half) * S::kTiles + warp_tile, has_zeros);
        group_ = group;
      }
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        uint32_t operands[S::kRowTiles][2];
#pragma unroll
        for (int j = 0; j < S::kRowTiles; j += 2) {
          LoadOperands(x + j * 8 * kRowBytes + ((2 * i + lane / 8 % 2) ^ (lane % 8)) * 16,
                       reinterpret_cast<uint32_t(&)[2][2]>(operands[j]));
        }
#pragma unroll
        for (int tile = 0; tile < kWarpTiles; ++tile) {
          const uint32_t word = i == 0   ? words[tile].x
                                : i == 1 ? words[tile].y
                                : i == 2 ? words[tile].z
                                         : words[tile].w;
          uint32_t w[4];
          Decode(word, zeros_[tile], w, static_cast<T*>(nullptr));
#pragma unroll
          for (int j = 0; j < S::kRowTiles; ++j) {
            stream_matmul::Multiply<T>(reinterpret_cast<float(&)[4]>(sums_[tile][j]), w[0], w[1],
                                       w[2], w[3], operands[j][0], operands[j][1]);
          }
        }
      }
    }
  }

  // To the units of the outputs.
  __device__ __forceinline__ void Finish() {
#pragma unroll
    for (int tile = 0; tile < kWarpTiles; ++tile) {
      ScaleBy(tile, scales_[tile][0], scales_[tile][1]);
    }
  }

  // Calls visit(fragment of the block, sums).
  template <typename Visit>
  __device__ __forceinline__ void ForEach(const Visit& visit) {
    const int warp = threadIdx.x / 32 % S::kSumWarps;
    const int first_tile = warp % S::kOutputWarps * kWarpTiles;
    const int first_row = warp / S::kOutputWarps * S::kRowTiles;
#pragma unroll
    for (int tile = 0; tile < kWarpTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < S::kRowTiles; ++i) {
        visit((first_tile + tile) * (S::kRows / 8) + first_row + i, sums_[tile][i]);
      }
    }
  }

 private:
  __device__ __forceinline__ void ScaleBy(int tile, float low, float high) {
#pragma unroll
    for (int i = 0; i < S::kRowTiles; ++i) {
      float4& sums = sums_[tile][i];
      sums = make_float4(sums.x * low, sums.y * low, sums.z * high, sums.w * high);
    }
  }

  __device__ __forceinline__ void ChangeGroup(uint32_t stage, int slot, bool has_zeros) {
    const int output = threadIdx.x % 32 / 4;
    const auto load_scale = [&](uint32_t from) {
      uint16_t bits;
      asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(from) : "memory");
      const float scale = __half2float(__ushort_as_half(bits));
      return scale == 0 ? 0x1p-60f : scale;  // something to divide by, and too small to matter
    };
    const auto load_zero = [&](uint32_t from) {
      uint32_t value;
      asm volatile("ld.shared.u8 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
      return value;
    };
#pragma unroll
    for (int tile = 0; tile < kWarpTiles; ++tile) {
      const uint32_t scales = stage + Stage<S>::kScalesAt + (slot + tile) * 32 + output * 2;
      const float low = load_scale(scales);
      const float high = load_scale(scales + 16);
      ScaleBy(tile, __fdividef(scales_[tile][0], low), __fdividef(scales_[tile][1], high));
      scales_[tile][0] = low;
      scales_[tile][1] = high;
      const uint32_t zeros = stage + Stage<S>::kZerosAt + (slot + tile) * 16 + output;
      zeros_[tile] =
          has_zeros ? MakeZeroPair(load_zero(zeros), load_zero(zeros + 8), static_cast<T*>(nullptr))
                    : MakeZeroPair(8, 8, static_cast<T*>(nullptr));
    }
  }

  float4 sums_[kWarpTiles][S::kRowTiles];
  float scales_[kWarpTiles][2];  // of outputs lane / 4 and that + 8 of the tiles
  ZeroPair zeros_[kWarpTiles];
  int group_;  // -1 before the first
};

}  // namespace ferrite::int4_matmul

// The 4-bit product by warpgroup instructions (wgmma, PTX ISA; sm_90a): weights decoded into
// registers, x read from shared memory by the tensor cores themselves.
#pragma once

#include "cuda/kernels/int4_matmul_kernel.cuh"

namespace ferrite::int4_matmul {

// A warpgroup covers kWarpTiles_ times 64 outputs, each of its warps a tile of every 64, by all
// rows of the block.
template <int kWarpgroups_, int kWarpTiles_, int kRows_, int kStages_, int kMinBlocks_>
struct WgmmaShape {
  static constexpr int kTilesOfWarp = kWarpTiles_;
  static constexpr int kInputWarps = 1;
  static constexpr int kStepTiles = 2;
  static constexpr int kStages = kStages_;
  static constexpr int kAhead = kStages - 2;  // products may still read the stage before
  static constexpr int kMinBlocks = kMinBlocks_;

  static constexpr int kSumWarps = kWarpgroups_ * 4;
  static constexpr int kWarps = kSumWarps;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTiles = kSumWarps * kTilesOfWarp;
  static constexpr int kOutputs = kTiles * kInt4TileOutputs;
  static constexpr int kRows = kRows_;
  static constexpr int kFragments = kTiles * kRows / 8;
};

// Where wgmma finds rows of 128 bytes, swizzled as StartRows does, eight after eight.
__device__ __forceinline__ uint64_t RowsDescriptor(uint32_t shared) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kEightRows = uint64_t{8 * kRowBytes / 16} << 32;
  return kSwizzle128 | kEightRows | uint64_t{1} << 16 | (shared & 0x3FFFF) / 16;
}

__device__ __forceinline__ void FenceWarpgroup() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void CommitWarpgroup() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kOutstanding>
__device__ __forceinline__ void WaitWarpgroup() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kOutstanding) : "memory");
}
// What was copied to shared memory may be read by wgmma.
__device__ __forceinline__ void FenceSharedForWgmma() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// sums[64 outputs, kRows] += w[64, 16] x[kRows, 16]^T, asynchronously. A lane has of w and, eight
// rows after eight, of the sums what it has for mma.m16n8k16.
template <typename T, int kRows>
struct Wgmma;

#define FERRITE_4(v, i) "+f"(v[i].x), "+f"(v[i].y), "+f"(v[i].z), "+f"(v[i].w)
#define FERRITE_8(v, i) FERRITE_4(v, i), FERRITE_4(v, i + 1)
#define FERRITE_16(v, i) FERRITE_8(v, i), FERRITE_8(v, i + 2)
#define FERRITE_32(v, i) FERRITE_16(v, i), FERRITE_16(v, i + 4)
#define FERRITE_64(v, i) FERRITE_32(v, i), FERRITE_32(v, i + 8)
#define FERRITE_N8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define FERRITE_N16 FERRITE_N8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define FERRITE_N32 \
  FERRITE_N16       \
  ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define FERRITE_N64                                                  \
  FERRITE_N32                                                        \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
  ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define FERRITE_WGMMA(type, name, rows, sums_of_lane, operands)                                  \
  template <>                                                                                    \
  struct Wgmma<type, rows> {                                                                     \
    __device__ static __forceinline__ void Add(float4 (&sums)[rows / 8], const uint32_t (&w)[4], \
                                               uint64_t x) {                                     \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #rows "k16.f32." name "." name            \
                   " {" FERRITE_N##sums_of_lane "}, " operands ", 1, 1, 1, 0;"                   \
                   : FERRITE_##sums_of_lane(sums, 0)                                             \
                   : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(x));                        \
    }                                                                                            \
  };
#define FERRITE_WGMMAS(rows, sums_of_lane, operands)         \
  FERRITE_WGMMA(__half, "f16", rows, sums_of_lane, operands) \
  FERRITE_WGMMA(__nv_bfloat16, "bf16", rows, sums_of_lane, operands)
FERRITE_WGMMAS(16, 8, "{%8,%9,%10,%11}, %12")
FERRITE_WGMMAS(32, 16, "{%16,%17,%18,%19}, %20")
FERRITE_WGMMAS(64, 32, "{%32,%33,%34,%35}, %36")
FERRITE_WGMMAS(128, 64, "{%64,%65,%66,%67}, %68")
#undef FERRITE_WGMMAS
#undef FERRITE_WGMMA

// The scales and zero points of a lane's two outputs of a tile, r and r + 8.
template <typename T>
struct Group;

// Scale * (q - zero), rounded once.
template <>
struct Group<__half> {
  ZeroPair zero;
  uint32_t scales[2];

  __device__ __forceinline__ void SetScales(uint16_t low, uint16_t high) {
    scales[0] = low * 0x10001u;
    scales[1] = high * 0x10001u;
  }
  __device__ __forceinline__ void Apply(uint32_t word, uint32_t (&to)[4]) const {
    Decode(word, zero, to, static_cast<__half*>(nullptr));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[i] = AsBits(__hmul2(AsPair<__half2>(to[i]), AsPair<__half2>(scales[i % 2])));
    }
  }
};

// An fp16 scale is the sum of two in bf16, and of the lesser the product is exact.
template <>
struct Group<__nv_bfloat16> {
  ZeroPair zero;
  uint32_t scales[2];
  uint32_t rests[2];

  __device__ __forceinline__ void SetScales(uint16_t low, uint16_t high) {
    Set(__half2float(__ushort_as_half(low)), 0);
    Set(__half2float(__ushort_as_half(high)), 1);
  }
  __device__ __forceinline__ void Apply(uint32_t word, uint32_t (&to)[4]) const {
    using Pair = __nv_bfloat162;
    Decode(word, zero, to, static_cast<__nv_bfloat16*>(nullptr));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto rest = __hmul2(AsPair<Pair>(to[i]), AsPair<Pair>(rests[i % 2]));
      to[i] = AsBits(__hfma2(AsPair<Pair>(to[i]), AsPair<Pair>(scales[i % 2]), rest));
    }
  }

 private:
  __device__ __forceinline__ void Set(float scale, int i) {
    const __nv_bfloat162 most = __float2bfloat162_rn(scale);
    scales[i] = AsBits(most);
    rests[i] = AsBits(__float2bfloat162_rn(scale - __low2float(most)));
  }
};

// A warp's sums. Weights are scaled before they are multiplied, since the multiplying is done by
// others while the next weights are decoded. Layout is that of a stage.
template <typename T, typename S, typename Layout>
class WarpgroupSums {
 public:
  __device__ static __forceinline__ void BeforeBarrier() { FenceSharedForWgmma(); }

  __device__ __forceinline__ void Clear() {
    group_ = -1;
#pragma unroll
    for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
#pragma unroll
      for (int i = 0; i < S::kRows / 8; ++i) {
        sums_[tile][i] = make_float4(0, 0, 0, 0);
      }
    }
    KeepSums();
  }

  // Adds the products of a step. On return those of the step before are complete.
  __device__ __forceinline__ void Add(const Plan& plan, bool has_zeros, uint32_t stage, int step) {
    const int index = step * S::kStepTiles;
    first_group_ = plan.group_of(2 * index);
    AddTile(plan, has_zeros, stage, 0, index, words_even_);
    AddTile(plan, has_zeros, stage, 1, index + 1, words_odd_);
  }

  __device__ __forceinline__ void Finish() {
    WaitWarpgroup<0>();
    KeepSums();
  }

  // Calls visit(fragment of the block, sums).
  template <typename Visit>
  __device__ __forceinline__ void ForEach(const Visit& visit) {
#pragma unroll
    for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
#pragma unroll
      for (int i = 0; i < S::kRows / 8; ++i) {
        visit(BlockTile(tile) * (S::kRows / 8) + i, sums_[tile][i]);
      }
    }
  }

 private:
  using Words = uint32_t[S::kTilesOfWarp][4][4];

  __device__ static __forceinline__ int BlockTile(int tile) {
    const int warp = threadIdx.x / 32;
    return (warp / 4 * S::kTilesOfWarp + tile) * 4 + warp % 4;
  }

  // The stage's tile `input` of inputs, tile `index` of all.
  __device__ __forceinline__ void AddTile(const Plan& plan, bool has_zeros, uint32_t stage,
                                          int input, int index, Words& decoded) {
    const int lane = threadIdx.x % 32;
    uint4 words[S::kTilesOfWarp];
#pragma unroll
    for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
      words[tile] =
          LoadShared(stage + ((BlockTile(tile) * S::kStepTiles + input) * 32 + lane) * 16);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Past the inputs' end there are some weights or other, no scales, and zeros for x.
      const int group = plan.group_of(min(2 * index + half, 2 * plan.input_tiles - 1));
      if (group != group_) {
        ChangeGroup(stage, input * 2 + half, group - first_group_, has_zeros);
        group_ = group;
      }
#pragma unroll
      for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
        groups_[tile].Apply(half == 0 ? words[tile].x : words[tile].z, decoded[tile][2 * half]);
        groups_[tile].Apply(half == 0 ? words[tile].y : words[tile].w, decoded[tile][2 * half + 1]);
      }
    }
    const uint64_t rows = RowsDescriptor(stage + Layout::kXAt + input * S::kRows * kRowBytes);
    FenceWarpgroup();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
        Wgmma<T, S::kRows>::Add(sums_[tile], decoded[tile][i], rows + 2 * i);
      }
    }
    CommitWarpgroup();
    WaitWarpgroup<1>();
  }

  // Keeps the compiler from moving what uses the sums past here.
  __device__ __forceinline__ void KeepSums() {
#pragma unroll
    for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
#pragma unroll
      for (int i = 0; i < S::kRows / 8; ++i) {
        asm volatile("" : FERRITE_4(sums_[tile], i)::"memory");
      }
    }
  }

  __device__ __forceinline__ void ChangeGroup(uint32_t stage, int half, int group, bool has_zeros) {
    const int output = threadIdx.x % 32 / 4;
    const auto load_scale = [&](uint32_t from) {
      uint16_t bits;
      asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(from) : "memory");
      return bits;
    };
    const auto load_zero = [&](uint32_t from) {
      uint32_t value;
      asm volatile("ld.shared.u8 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
      return value;
    };
#pragma unroll
    for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
      const int slot = Layout::GroupSlot(BlockTile(tile), half, group);
      const uint32_t scales = stage + Layout::kScalesAt + slot * 32 + output * 2;
      groups_[tile].SetScales(load_scale(scales), load_scale(scales + 16));
      const uint32_t zeros = stage + Layout::kZerosAt + slot * 16 + output;
      groups_[tile].zero =
          has_zeros ? MakeZeroPair(load_zero(zeros), load_zero(zeros + 8), static_cast<T*>(nullptr))
                    : MakeZeroPair(8, 8, static_cast<T*>(nullptr));
    }
  }

  float4 sums_[S::kTilesOfWarp][S::kRows / 8];
  Words words_even_;
  Words words_odd_;
  Group<T> groups_[S::kTilesOfWarp];
  int group_;        // -1 before the first
  int first_group_;  // of the step
};

#undef FERRITE_4
#undef FERRITE_8
#undef FERRITE_16
#undef FERRITE_32
#undef FERRITE_64
#undef FERRITE_N8
#undef FERRITE_N16
#undef FERRITE_N32
#undef FERRITE_N64

}  // namespace ferrite::int4_matmul

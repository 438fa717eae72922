// Pieces of the 4-bit product: how work is shared out, the ring of tiles in shared memory, and the
// decoding of weights.
#pragma once

#include "cuda/kernels/int4_matmul.h"
#include "cuda/kernels/stream_matmul_parts.cuh"

namespace ferrite::int4_matmul {

using stream_matmul::CommitCopies;
using stream_matmul::CopyAsync;
using stream_matmul::LoadShared;
using stream_matmul::SharedAddress;
using stream_matmul::WaitCopies;

inline constexpr int kTileBytes = kInt4TileWords * 4;
inline constexpr int kRowBytes = kInt4TileInputs * 2;  // of a row's inputs beside a tile

// A product's shape, here S, has kThreads in kWarps, kOutputs (kTiles of them) by kRows of a block,
// kFragments of 16 x 8 sums, tiles first, kStepTiles of inputs in a step, kStages of the ring, of
// which kAhead are being filled, kInputWarps that share those sums, and kMinBlocks whose registers
// fit a multiprocessor.

// A stage: weights [kTiles, kStepTiles, 512], x [kStepTiles, kRows, 128], then for both halves of
// the inputs scales [kStepTiles, 2, kTiles, 32] and zeros [kStepTiles, 2, kTiles, 16].
template <typename S>
struct Stage {
  static constexpr int kXAt = S::kTiles * S::kStepTiles * kTileBytes;
  static constexpr int kScalesAt = kXAt + S::kStepTiles * S::kRows * kRowBytes;
  static constexpr int kZerosAt = kScalesAt + S::kStepTiles * 2 * S::kTiles * 32;
  static constexpr int kBytes =
      (kZerosAt + S::kStepTiles * 2 * S::kTiles * 16 + 1023) / 1024 * 1024;

  // Where a tile has what holds for that half of the inputs, and that group of the step's.
  __device__ static constexpr int GroupSlot(int tile, int half, int /* group */) {
    return half * S::kTiles + tile;
  }
};

// Shared memory: the ring, and the sums of warps that others add to theirs.
template <typename S>
constexpr int SharedBytes() {
  return S::kStages * Stage<S>::kBytes + (S::kInputWarps - 1) * S::kFragments * 32 * 16;
}

// Division of numbers below 2^16.
struct Divider {
  uint32_t divisor = 1;
  uint32_t magic = 0;  // 2^32 / divisor, rounded up; not used for 1
  __device__ int operator()(int value) const {
    return divisor == 1 ? value : static_cast<int>(__umulhi(value, magic));
  }
};

// A unit of work is one step of the inputs of one block tile. Units are numbered with the steps
// innermost, then blocks of rows, then blocks of outputs; each block takes as many that follow each
// other, the first `longer` of them one more.
struct Plan {
  int32_t row_blocks = 0;
  int32_t steps = 0;
  int32_t input_tiles = 0;
  int32_t output_tiles = 0;
  int32_t groups = 0;
  int32_t blocks = 0;
  int32_t units = 0;  // of the shorter blocks
  int32_t longer = 0;
  Divider group_of;  // the group of a half of a tile's inputs

  __device__ int FirstUnit(int block) const { return block * units + min(block, longer); }
  __device__ int BlockOf(int unit) const {
    const int in_longer = longer * (units + 1);
    return unit < in_longer ? unit / (units + 1) : longer + (unit - in_longer) / units;
  }
};

// Where in the work one is.
struct Cursor {
  int output_block;
  int row_block;
  int step;

  __device__ Cursor(const Plan& plan, int unit) {
    const int tile = unit / plan.steps;
    step = unit - tile * plan.steps;
    output_block = tile / plan.row_blocks;
    row_block = tile - output_block * plan.row_blocks;
  }
  __device__ int Tile(const Plan& plan) const { return output_block * plan.row_blocks + row_block; }
  __device__ void Advance(const Plan& plan) {
    if (++step == plan.steps) {
      step = 0;
      if (++row_block == plan.row_blocks) {
        row_block = 0;
        ++output_block;
      }
    }
  }
};

// Starts the copies of a unit's weights, with their scales and zero points, into a stage.
template <typename S>
__device__ __forceinline__ void StartWeights(const Int4Weight& w, const Plan& plan,
                                             const Cursor& at, uint32_t stage) {
  constexpr int kTilesAtOnce = S::kThreads / (32 * S::kStepTiles);
  static_assert(S::kTiles % kTilesAtOnce == 0);
  const int thread = threadIdx.x;
  const int first_tile = at.output_block * S::kTiles;
  const int first_input = at.step * S::kStepTiles;
  const auto* tiles = reinterpret_cast<const char*>(w.tiles);
#pragma unroll
  for (int i = 0; i < S::kTiles / kTilesAtOnce; ++i) {
    const int piece = thread % (32 * S::kStepTiles);
    const int tile = thread / (32 * S::kStepTiles) + i * kTilesAtOnce;
    const bool valid =
        first_tile + tile < plan.output_tiles && first_input + piece / 32 < plan.input_tiles;
    const int64_t from = int64_t{first_tile + tile} * plan.input_tiles + first_input;
    CopyAsync(stage + (tile * S::kStepTiles * 32 + piece) * 16,
              valid ? tiles + from * kTileBytes + piece * 16 : tiles, valid);
  }
  const auto start = [&](int piece, int pieces, const void* values, int to) {
    const int tile = piece / pieces % S::kTiles;
    const int input = piece / pieces / S::kTiles;
    const bool valid =
        first_tile + tile < plan.output_tiles && first_input + input < plan.input_tiles;
    const int group = plan.group_of(2 * (first_input + input));
    const int last = plan.group_of(2 * (first_input + input) + 1);
    const int64_t row = int64_t{first_tile + tile} * plan.groups;
    const auto* from = static_cast<const char*>(values);
    const int part = piece % pieces * 16;
    const uint32_t slot = stage + to + (input * 2 * S::kTiles + tile) * pieces * 16 + part;
    CopyAsync(slot, valid ? from + (row + group) * pieces * 16 + part : from, valid);
    if (last != group) {
      CopyAsync(slot + S::kTiles * pieces * 16,
                valid ? from + (row + last) * pieces * 16 + part : from, valid);
    }
  };
  if (thread < S::kTiles * S::kStepTiles * 2) {
    start(thread, 2, w.scales, Stage<S>::kScalesAt);
  }
  const int back = S::kThreads - 1 - thread;
  if (w.zeros != nullptr && back < S::kTiles * S::kStepTiles) {
    start(back, 1, w.zeros, Stage<S>::kZerosAt);
  }
}

// The same of a unit's rows of x. Pieces of 16 bytes are swizzled so that eight rows' pieces of the
// same inputs meet all banks.
template <typename S>
__device__ __forceinline__ void StartRows(const Int4MatmulArguments& a, const Plan& plan,
                                          const Cursor& at, uint32_t stage) {
  constexpr int kPieces = 8 * S::kStepTiles;
  constexpr int kRowsAtOnce = S::kThreads / kPieces;
  static_assert(kRowsAtOnce % 8 == 0);
  const int piece = threadIdx.x % kPieces;
  const int input = at.step * S::kStepTiles * kInt4TileInputs + piece * 8;
  const auto* x = static_cast<const uint16_t*>(a.x);
#pragma unroll
  for (int i = 0; i < (S::kRows + kRowsAtOnce - 1) / kRowsAtOnce; ++i) {
    const int row = threadIdx.x / kPieces + i * kRowsAtOnce;
    if (S::kRows % kRowsAtOnce != 0 && row >= S::kRows) {
      break;
    }
    const int from = at.row_block * S::kRows + row;
    const bool valid = from < a.rows && input < a.weight.inputs;
    CopyAsync(stage + Stage<S>::kXAt + (piece / 8 * S::kRows + row) * kRowBytes +
                  (piece % 8 ^ row % 8) * 16,
              valid ? x + int64_t{from} * a.weight.inputs + input : x, valid);
  }
}

// (word & mask) | exponent
template <uint32_t kMask, uint32_t kExponent>
__device__ __forceinline__ uint32_t Extract(uint32_t word) {
  uint32_t bits;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(bits) : "r"(word), "n"(kMask), "n"(kExponent));
  return bits;
}

template <typename Pair>
__device__ __forceinline__ Pair AsPair(uint32_t bits) {
  return reinterpret_cast<const Pair&>(bits);
}
template <typename Pair>
__device__ __forceinline__ uint32_t AsBits(const Pair& pair) {
  return reinterpret_cast<const uint32_t&>(pair);
}

// What is subtracted for outputs r and r + 8 of a tile.
struct ZeroPair {
  uint32_t low;
  uint32_t high;
};

// fp16: 1024 + q with q in the lowest bits of the significand, 1024 + 16 q above them; a sixteenth
// of the latter is 64 + q. All steps are exact.
__device__ __forceinline__ ZeroPair MakeZeroPair(uint32_t low, uint32_t high, __half*) {
  return {(0x6400 + low) * 0x10001, (0xD400 + (high << 4)) * 0x10001};
}
__device__ __forceinline__ void Decode(uint32_t word, const ZeroPair& zero, uint32_t (&to)[4],
                                       __half*) {
  const auto low = AsPair<__half2>(zero.low);
  const auto high = AsPair<__half2>(zero.high);
  const auto sixteenth = AsPair<__half2>(0x2C002C00);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t w = word >> 8 * i;
    to[2 * i] = AsBits(__hsub2(AsPair<__half2>(Extract<0x000F000F, 0x64006400>(w)), low));
    to[2 * i + 1] =
        AsBits(__hfma2(AsPair<__half2>(Extract<0x00F000F0, 0x64006400>(w)), sixteenth, high));
  }
}

// bf16: 128 + q. Exact too.
__device__ __forceinline__ ZeroPair MakeZeroPair(uint32_t low, uint32_t high, __nv_bfloat16*) {
  return {(0x4300 + low) * 0x10001, (0x4300 + high) * 0x10001};
}
__device__ __forceinline__ void Decode(uint32_t word, const ZeroPair& zero, uint32_t (&to)[4],
                                       __nv_bfloat16*) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[i] = AsBits(__hsub2(AsPair<__nv_bfloat162>(Extract<0x000F000F, 0x43004300>(word >> 4 * i)),
                           AsPair<__nv_bfloat162>(i % 2 == 0 ? zero.low : zero.high)));
  }
}

// Writes what a lane has of a fragment, 16 outputs by 8 rows: outputs lane / 4 and, in z and w,
// that + 8; rows lane % 4 * 2 and the next. Lanes change values so that each has two outputs of one
// row.
template <typename T>
__device__ __forceinline__ void WriteFragment(const Int4MatmulArguments& a, int output, int row,
                                              const float4& sums) {
  using Epilogue = Int4MatmulArguments::Epilogue;
  const int lane = threadIdx.x % 32;
  const bool odd = lane / 4 % 2 == 1;
  const float got_low = __shfl_xor_sync(0xFFFFFFFF, odd ? sums.x : sums.y, 4);
  const float got_high = __shfl_xor_sync(0xFFFFFFFF, odd ? sums.z : sums.w, 4);
  float2 pairs[2] = {odd ? make_float2(got_low, sums.y) : make_float2(sums.x, got_low),
                     odd ? make_float2(got_high, sums.w) : make_float2(sums.z, got_high)};
  row += lane % 4 * 2 + odd;
  output += lane / 8 * 2;
  if (row >= a.rows || output >= a.weight.outputs) {
    return;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float2& pair = pairs[i];
    if (a.bias != nullptr) {
      pair.x += a.bias[output + 8 * i];
      pair.y += a.bias[output + 8 * i + 1];
    }
    const int64_t at = int64_t{row} * a.y_stride + output + 8 * i;
    if (a.epilogue == Epilogue::kStore) {
      using Pair = typename PairOf<T>::Type;
      *reinterpret_cast<Pair*>(static_cast<T*>(a.y) + at) =
          FromFloat2(pair, static_cast<Pair*>(nullptr));
      continue;
    }
    auto* y = reinterpret_cast<float2*>(static_cast<float*>(a.y) + at);
    if (a.epilogue == Epilogue::kAdd) {
      const float2 before = __ldcg(y);
      pair.x += before.x;
      pair.y += before.y;
    }
    *y = pair;
  }
}

}  // namespace ferrite::int4_matmul

// One row of activations as bytes, so that its product with 4-bit weights goes by the tensor cores'
// integers: half as many steps, weights unpacked by three instructions for eight, and sums that are
// exact until they meet their scales.
//
// x becomes (65536 d2 + 256 d1 + d0) * unit with signed bytes d, where the unit is the row's
// largest magnitude over kDigitsMost: nothing is off by more than half a unit. The three digits
// stand in columns of their own of the second operand, which has eight anyway.
#pragma once

#include "cuda/kernels/stream_int4_activations.cuh"

namespace ferrite::stream_int4 {

// Adding kIntegerShift makes an integer of less than 2^22 the low bits of a float, which are then
// kIntegerBits more than it.
inline constexpr float kIntegerShift = 12582912.0f;
inline constexpr uint32_t kIntegerBits = 0x4B400000;
inline constexpr float kDigitsMost = 4190000.0f;

// What x is over its digits: 16 is what the weights have too much (SignedLow).
__device__ __forceinline__ float DigitUnit(float most) { return most * (1.0f / kDigitsMost / 16); }

// The weights q - 8 of a word of a tile times 16: those of the tile's first eight outputs, and of
// the others. Four inputs each.
__device__ __forceinline__ uint32_t SignedLow(uint32_t word) {
  uint32_t bytes;
  asm("lop3.b32 %0, %1, 0xF0F0F0F0, 0x80808080, 0x6A;" : "=r"(bytes) : "r"(word << 4));
  return bytes;
}
__device__ __forceinline__ uint32_t SignedHigh(uint32_t word) {
  uint32_t bytes;
  asm("lop3.b32 %0, %1, 0xF0F0F0F0, 0x80808080, 0x6A;" : "=r"(bytes) : "r"(word));
  return bytes;
}

// sums[16 outputs, 8 columns] += w[16, 32 inputs] x[8, 32 inputs]^T, from two words of a tile.
__device__ __forceinline__ void MultiplyBytes(uint32_t (&sums)[4], uint32_t word, uint32_t next,
                                              uint32_t x, uint32_t x_next) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(SignedLow(word)), "r"(SignedHigh(word)), "r"(SignedLow(next)), "r"(SignedHigh(next)),
        "r"(x), "r"(x_next));
}

// Sixteen inputs' digits at `to`, in the order in which a word of a tile has them: inputs 2 t,
// 2 t + 8, 2 t + 1 and 2 t + 9 are the four of lanes t.
__device__ __forceinline__ void StoreDigits(const float (&values)[16], float factor, int stride,
                                            char* to) {
  uint32_t words[kDigits][4];
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    uint32_t four[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = 2 * t + i / 2 + i % 2 * 8;
      // Each digit 128 too much, so that none borrows.
      four[i] = __float_as_uint(__fmaf_rn(values[k], factor, kIntegerShift)) -
                (kIntegerBits - 0x00808080);
    }
    const uint32_t low = __byte_perm(four[0], four[1], 0x5140);
    const uint32_t low_next = __byte_perm(four[2], four[3], 0x5140);
    const uint32_t high = __byte_perm(four[0], four[1], 0x0062);
    const uint32_t high_next = __byte_perm(four[2], four[3], 0x0062);
    words[0][t] = __byte_perm(low, low_next, 0x5410) ^ 0x80808080;
    words[1][t] = __byte_perm(low, low_next, 0x7632) ^ 0x80808080;
    words[2][t] = __byte_perm(high, high_next, 0x5410) ^ 0x80808080;
  }
#pragma unroll
  for (int digit = 0; digit < kDigits; ++digit) {
    *reinterpret_cast<uint4*>(to + digit * stride) =
        make_uint4(words[digit][0], words[digit][1], words[digit][2], words[digit][3]);
  }
}

// The bits of |value|; a NaN's are more than any number's.
__device__ __forceinline__ uint32_t Magnitude(float value) {
  return __float_as_uint(value) & 0x7FFFFFFF;
}

// The largest of the block's bits and the sum of its sums; `scratch` holds two words a warp.
// Synchronises once.
__device__ __forceinline__ void ReduceBlock(uint32_t* most, float* sum, float* scratch) {
  const int warps = stream_matmul::BlockThreads() / 32;
  const int warp = stream_matmul::BlockThread() / 32;
  *most = __reduce_max_sync(0xFFFFFFFF, *most);
  *sum = stream_matmul::WarpSum(*sum);
  if (threadIdx.x % 32 == 0) {
    scratch[warp] = __uint_as_float(*most);
    scratch[warps + warp] = *sum;
  }
  __syncthreads();
  *most = 0;
  *sum = 0;
  for (int i = 0; i < warps; ++i) {
    *most = max(*most, __float_as_uint(scratch[i]));
    *sum += scratch[warps + i];
  }
}

__device__ __forceinline__ float DigitFactor(float most) {
  return most > 1e-30f ? kDigitsMost / most : 0.0f;  // never infinite
}

// Waits for the kernel ahead and puts the digits of this block's slice of x into shared memory as
// [kDigits, DigitStride], zeros past the inputs; `before` and `meanwhile` as of
// ReadRows. A thread takes sixteen inputs at a time, kTimes times at most.
// Returns the unit. The caller synchronises.
template <int kTimes, typename T, typename Before, typename Meanwhile>
__device__ float ReadDigits(const StreamMatmulArguments& a, int begin, int slice_inputs, char* x,
                            float* scratch, const Before& before, const Meanwhile& meanwhile) {
  const int stride = DigitStride(slice_inputs);
  const auto input = [&](int time) {
    return (stream_matmul::BlockThread() + time * stream_matmul::BlockThreads()) * 16;
  };
  before();
  WaitForPrevious();
  uint4 bits[kTimes][2];
#pragma unroll
  for (int time = 0; time < kTimes; ++time) {
    const int k = input(time);
    const auto* from = reinterpret_cast<const uint4*>(static_cast<const T*>(a.x) + begin + k);
    const bool valid = k < slice_inputs && begin + k < a.inputs;
    bits[time][0] = valid ? __ldcg(from) : make_uint4(0, 0, 0, 0);
    bits[time][1] = valid ? __ldcg(from + 1) : make_uint4(0, 0, 0, 0);
  }
  meanwhile();
  float values[kTimes][16];
  uint32_t most = 0;
#pragma unroll
  for (int time = 0; time < kTimes; ++time) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float eight[8];
      Unpack<T>(bits[time][half], eight);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        values[time][8 * half + i] = eight[i];
        most = max(most, Magnitude(eight[i]));
      }
    }
  }
  float unused = 0;
  ReduceBlock(&most, &unused, scratch);
  const float largest = __uint_as_float(most);
#pragma unroll
  for (int time = 0; time < kTimes; ++time) {
    if (input(time) < slice_inputs) {
      StoreDigits(values[time], DigitFactor(largest), stride, x + input(time));
    }
  }
  return DigitUnit(largest);
}

// The same of the residual's RMS norm, of which a block has the whole row.
template <int kTimes, typename Before, typename Meanwhile>
__device__ float ReadNormDigits(const StreamMatmulArguments& a, int slice_inputs, char* x,
                                float* scratch, const Before& before, const Meanwhile& meanwhile) {
  const int stride = DigitStride(slice_inputs);
  const auto input = [&](int time) {
    return (stream_matmul::BlockThread() + time * stream_matmul::BlockThreads()) * 16;
  };
  const float4 zero = make_float4(0, 0, 0, 0);
  float4 weights[kTimes][4];
  float4 residual[kTimes][4];
#pragma unroll
  for (int time = 0; time < kTimes; ++time) {
    const auto* from = reinterpret_cast<const float4*>(a.norm_weight + input(time));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      weights[time][i] = input(time) < a.inputs ? __ldg(from + i) : zero;
    }
  }
  before();
  WaitForPrevious();
#pragma unroll
  for (int time = 0; time < kTimes; ++time) {
    const auto* from = reinterpret_cast<const float4*>(a.residual + input(time));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      residual[time][i] = input(time) < a.inputs ? __ldcg(from + i) : zero;
    }
  }
  meanwhile();
  float values[kTimes][16];
  float squares = 0;
  uint32_t most = 0;
#pragma unroll
  for (int time = 0; time < kTimes; ++time) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      squares += stream_matmul::SquareSum(residual[time][i]);
      stream_matmul::ScaleBy(residual[time][i], 1.0f, weights[time][i], values[time] + 4 * i);
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      most = max(most, Magnitude(values[time][i]));
    }
  }
  ReduceBlock(&most, &squares, scratch);
  const float largest = __uint_as_float(most);
#pragma unroll
  for (int time = 0; time < kTimes; ++time) {
    if (input(time) < slice_inputs) {
      StoreDigits(values[time], DigitFactor(largest), stride, x + input(time));
    }
  }
  return DigitUnit(largest) * rsqrtf(squares / static_cast<float>(a.inputs) + a.epsilon);
}

// x to shared memory at `to`. Synchronises.
template <typename T, typename Before, typename Meanwhile>
__device__ Activations DigitsToShared(const StreamMatmulArguments& a,
                                      const stream_matmul::Plan& plan, int begin, char* to,
                                      float* scratch, const Before& before,
                                      const Meanwhile& meanwhile) {
  const int lane = threadIdx.x % 32;
  const float unit =
      a.residual != nullptr
          ? ReadNormDigits<kNormDigitTimes>(a, plan.slice_inputs, to, scratch, before, meanwhile)
          : ReadDigits<kDigitTimes, T>(a, begin, plan.slice_inputs, to, scratch, before, meanwhile);
  __syncthreads();
  // Columns past the last digit read that one: what comes of them is not looked at.
  return {.row = stream_matmul::SharedAddress(
              to + min(lane % 8, kDigits - 1) * DigitStride(plan.slice_inputs) + lane / 8 * 16),
          .unit = unit};
}

// MultiplyStep over digits: sums[tile][i] are of columns lane % 4 * 2 + i % 2. `x_at` is where this
// lane's row of matrices of the step's inputs is.
template <int kTiles, int kChunk>
__device__ __forceinline__ void MultiplyDigits(WeightStream<kTiles>& weights, int stage,
                                               uint32_t x_at, float (&sums)[kTiles][4]) {
  constexpr int kPieces = WeightStream<kTiles>::kPieces;
  constexpr int kChunks = StepInputs(kTiles) / kChunk;
  constexpr int kChunkPieces = kChunk / kInt4TileInputs;
  uint4 words[kTiles][kPieces];
  uint4 x[kPieces];
  uint32_t scales[kTiles * kChunks];
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      words[tile][piece] = weights.Load(stage, tile, piece);
    }
    x[piece] = LoadMatrices(x_at + piece * kInt4TileInputs);
  }
  weights.LoadScales(stage, scales);
  __syncwarp();  // all lanes have read the scales
  weights.Start(stage);
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    uint32_t products[kTiles][4];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (uint32_t& product : products[tile]) {
        product = kIntegerBits;
      }
    }
#pragma unroll
    for (int i = 0; i < kChunkPieces; ++i) {
      const int piece = chunk * kChunkPieces + i;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint4& four = words[tile][piece];
        MultiplyBytes(products[tile], four.x, four.y, x[piece].x, x[piece].y);
        MultiplyBytes(products[tile], four.z, four.w, x[piece].z, x[piece].w);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const __half2 both = *reinterpret_cast<const __half2*>(&scales[tile * kChunks + chunk]);
      const float scale = __low2float(both);
      const float high_scale = __high2float(both);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[tile][i] +=
            (i < 2 ? scale : high_scale) * (__uint_as_float(products[tile][i]) - kIntegerShift);
      }
    }
  }
}

// The row's sums from those of its digits, whose columns lanes 0 and 1 of four have: to lane 0,
// where the first of rows is looked for.
__device__ __forceinline__ float4 JoinDigits(const float (&sums)[4], float unit) {
  const bool first = threadIdx.x % 4 == 0;
  float low = first ? sums[0] + 256.0f * sums[1] : 65536.0f * sums[0];
  float high = first ? sums[2] + 256.0f * sums[3] : 65536.0f * sums[2];
  low = (low + __shfl_xor_sync(0xFFFFFFFF, low, 1)) * unit;
  high = (high + __shfl_xor_sync(0xFFFFFFFF, high, 1)) * unit;
  return make_float4(low, 0, high, 0);
}

}  // namespace ferrite::stream_int4

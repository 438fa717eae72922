// Pieces of the 4-bit weight-streaming product: weights on their way through shared memory, and a
// warp's step over them. W is the first operand of the tensor cores, x the second.
#pragma once

#include "cuda/kernels/stream_int4_plan.cuh"

namespace ferrite::stream_int4 {

// Four registers of the first operand out of a word of a tile, as numbers (kOffset + q) / kScale in
// a tile's first eight outputs, and kHighFactor times that in the others. The numbers are exact,
// and so are their products in fp32.
template <typename T>
struct Nibbles;

// A bare nibble is the subnormal q 2^-24, and q 2^-20 four bits up.
template <>
struct Nibbles<__half> {
  static constexpr float kOffset = 0;
  static constexpr float kScale = 16777216.0f;
  static constexpr float kHighFactor = 16.0f;
  static constexpr uint32_t kOnes = 0x3C003C00;
  __device__ static void Extract(uint32_t word, uint32_t (&a)[4]) {
    a[0] = word & 0x000F000F;
    a[1] = word & 0x00F000F0;
    word >>= 8;
    a[2] = word & 0x000F000F;
    a[3] = word & 0x00F000F0;
  }
};

// A subnormal's products would be too small for fp32: 128 + q instead.
template <>
struct Nibbles<__nv_bfloat16> {
  static constexpr float kOffset = 128;
  static constexpr float kScale = 1.0f;
  static constexpr float kHighFactor = 1.0f;
  static constexpr uint32_t kOnes = 0x3F803F80;
  __device__ static void Extract(uint32_t word, uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Said in so many words, or else it becomes two instructions: (word & mask) | exponents.
      asm("lop3.b32 %0, %1, 0x000F000F, 0x43004300, 0xEA;" : "=r"(a[i]) : "r"(word >> (4 * i)));
    }
  }
};

// Lane l gives the address of row l % 8 of matrix l / 8, and gets elements l % 4 * 2 and the next
// of row l / 4 of each.
__device__ __forceinline__ uint4 LoadMatrices(uint32_t from) {
  uint4 bits;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
               : "r"(from)
               : "memory");
  return bits;
}

// Four matrices of scales, as many as kMatrices: lane l gives the address of row l % 8 of matrix
// l / 8, eight halves, and gets elements l / 4 of rows l % 4 * 2 and the next of each.
template <int kMatrices>
__device__ __forceinline__ void LoadTransposed(uint32_t from, uint32_t* bits) {
  static_assert(kMatrices == 2 || kMatrices == 4);
  if constexpr (kMatrices == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(bits[0]), "=r"(bits[1])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits[0]), "=r"(bits[1]), "=r"(bits[2]), "=r"(bits[3])
                 : "r"(from)
                 : "memory");
  }
}

// As stream_matmul::CopyAsync, but nothing at all unless at < end.
__device__ __forceinline__ void CopyAsyncBefore(int at, int end, uint32_t to, const void* from) {
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.lt.s32 wanted, %2, %3;\n"
      "@wanted cp.async.cg.shared.global.L2::128B [%0], [%1], 16;\n"
      "}" ::"r"(to),
      "l"(from), "r"(at), "r"(end)
      : "memory");
}

// The float 2^23 + byte.
__device__ __forceinline__ float ShiftedFloat(uint32_t byte) {
  return __uint_as_float(0x4B000000 | byte);
}
inline constexpr float kFloatShift = 8388608.0f;

// A warp's weights, scales and zero points on their way through its own part of the ring. Tiles
// past the inputs stay what was there: x is zero there.
template <int kTiles>
class WeightStream {
 public:
  static constexpr int kPieces = kLanePieces / kTiles;

  // `ring` has room for a stage's tiles times the number of stages, `scales` for their scales.
  __device__ WeightStream(const Int4Weight& weight, const Plan& plan, char* ring, char* scales,
                          int slice, int first_unit)
      : ring_(stream_matmul::SharedAddress(ring) + threadIdx.x * 16),
        stage_scales_(kWarps * ScaleBytes(plan.chunk)),
        group_factor_(plan.group_factor) {
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    unit_ = first_unit;
    units_ = plan.shape.units;
    unit_step_ = plan.block_groups * static_cast<int>(blockDim.y);
    const int begin = slice * plan.shape.slice_inputs + warp * StepInputs(kTiles);
    end_ = min(weight.inputs, (slice + 1) * plan.shape.slice_inputs);
    unit_left_ = max(end_ - begin, 0);
    left_ = unit_ < units_ ? unit_left_ : 0;
    const int64_t row_bytes = int64_t{weight.inputs} * kInputBytes;
    second_ = units_ * row_bytes;
    const int steps = (unit_left_ + kWarpsInputs - 1) / kWarpsInputs;
    unit_bytes_ =
        static_cast<int>(unit_step_ * row_bytes) - (steps - 1) * kWarpsInputs * kInputBytes;
    from_ = reinterpret_cast<const char*>(weight.tiles) + first_unit * row_bytes +
            int64_t{begin} * kInputBytes + lane * 16;

    // Lanes up to 15 copy scales, two to a chunk, and those from 16 on zero points.
    const int chunks = StageChunks(plan.chunk);
    const bool zeros = lane >= 16;
    const int chunk = zeros ? lane - 16 : lane / 2;
    const bool copies = chunk < chunks && (!zeros || weight.zeros != nullptr);
    char* own_scales = scales + warp * ScaleBytes(plan.chunk);
    scales_ = stream_matmul::SharedAddress(own_scales);
    scale_bytes_ = kInt4TileOutputs * (zeros ? 1 : 2);
    scale_to_ = scales_ + (zeros ? chunks * 32 + chunk * 16 : lane * 16);
    scale_k_ = chunk % (chunks / kTiles) * plan.chunk;
    copies_ = copies ? 0 : kNever;
    const int row_scale_bytes = plan.groups * scale_bytes_;
    unit_scale_bytes_ = unit_step_ * row_scale_bytes;
    const int row = first_unit + chunk / (chunks / kTiles) * units_;
    scale_from_ = (zeros ? reinterpret_cast<const char*>(weight.zeros)
                         : reinterpret_cast<const char*>(weight.scales) + lane % 2 * 16) +
                  int64_t{row} * row_scale_bytes;
    scale_lane_ = scales_ + lane / 8 * 32 + lane % 2 * 16;
    zero_lane_ = own_scales + chunks * 32 + lane / 4;
  }

  // Zero points of 8, which no copies overwrite.
  __device__ void FillZeros(const Plan& plan) {
    const int lane = threadIdx.x % 32;
    if (lane < StageChunks(plan.chunk) * kInt4TileOutputs / 4) {
      const uint32_t to = scales_ + StageChunks(plan.chunk) * 32 + lane * 4;
      for (int stage = 0; stage < plan.shape.stages; ++stage) {
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + stage * stage_scales_), "r"(0x08080808)
                     : "memory");
      }
    }
  }

  // Starts the copies of the next step to `stage`, or of nothing once all are under way. No
  // branches: it is to be mixed with the products.
  __device__ __forceinline__ void Start(int stage) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        CopyAsyncBefore(piece * kInt4TileInputs, left_, Address(stage, tile, piece),
                        from_ + tile * second_ + piece * kTileBytes);
      }
    }
    // Past the inputs another's scales, which are numbers as well.
    const int k = min(end_ - left_ + scale_k_, end_ - 1);
    const int group = static_cast<int>(__umulhi(static_cast<uint32_t>(k), group_factor_));
    CopyAsyncBefore(copies_, left_, scale_to_ + stage * stage_scales_,
                    scale_from_ + group * scale_bytes_);
    stream_matmul::CommitCopies();
    left_ -= kWarpsInputs;
    const bool next_unit = left_ <= 0;
    unit_ += next_unit ? unit_step_ : 0;
    left_ = !next_unit ? left_ : unit_ < units_ ? unit_left_ : 0;
    from_ += next_unit ? unit_bytes_ : kWarpsInputs * kInputBytes;
    scale_from_ += next_unit ? unit_scale_bytes_ : 0;
  }

  __device__ uint4 Load(int stage, int tile, int piece) const {
    return stream_matmul::LoadShared(Address(stage, tile, piece));
  }

  // Of outputs lane / 4 and lane / 4 + 8 of a stage's chunks, as they are.
  template <int kChunks>
  __device__ __forceinline__ void LoadScales(int stage, uint32_t (&scales)[kChunks]) const {
    constexpr int kAtOnce = kChunks < 4 ? kChunks : 4;
#pragma unroll
    for (int i = 0; i < kChunks; i += kAtOnce) {
      LoadTransposed<kAtOnce>(scale_lane_ + stage * stage_scales_ + i * 32, scales + i);
    }
  }
  template <int kChunks>
  __device__ __forceinline__ void LoadZeros(int stage, uint8_t (&zeros)[kChunks][2]) const {
    const char* from = zero_lane_ + stage * stage_scales_;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      zeros[i][0] = static_cast<uint8_t>(from[i * kInt4TileOutputs]);
      zeros[i][1] = static_cast<uint8_t>(from[i * kInt4TileOutputs + 8]);
    }
  }

 private:
  static constexpr int kTileBytes = kInt4TileWords * 4;
  static constexpr int kInputBytes = kInt4TileOutputs / 2;
  static constexpr int kWarpsInputs = kWarps * StepInputs(kTiles);
  static constexpr int kNever = 1 << 20;  // more than all inputs

  __device__ uint32_t Address(int stage, int tile, int piece) const {
    return ring_ + stage * kStageBytes + (tile * kPieces + piece) * (kThreads * 16);
  }

  uint32_t ring_;
  int stage_scales_;
  uint32_t group_factor_;
  int end_;
  int unit_left_;  // inputs from the warp's first of a unit on
  int unit_;
  int units_;
  int unit_step_;
  int left_;          // inputs of the unit from the next step on, none after the last unit
  const char* from_;  // this lane's of the step's first tile
  int64_t second_;    // from there to the same of the second row of tiles
  int unit_bytes_;    // and from a unit's last step to the next unit's first
  int scale_bytes_;   // of a group
  int scale_k_;       // from the step's first input to that whose scale this lane copies
  int copies_;        // never less than `left_` where this lane copies none
  uint32_t scales_;
  uint32_t scale_to_;
  const char* scale_from_;
  int unit_scale_bytes_;
  uint32_t scale_lane_;
  const char* zero_lane_;
};

// sums[tile] += a step's weights times x, over the scales of Nibbles, and the start of the stage's
// next copies. `x_at` is where this lane's row of matrices of the step's inputs is, `x_sums` what
// SumChunks has of its first chunk and this lane's rows.
template <typename T, int kTiles, int kChunk>
__device__ __forceinline__ void MultiplyStep(WeightStream<kTiles>& weights, int stage,
                                             uint32_t x_at, const float* x_sums, int sums_stride,
                                             float (&sums)[kTiles][4]) {
  using Values = Nibbles<T>;
  constexpr int kPieces = WeightStream<kTiles>::kPieces;
  constexpr int kChunks = StepInputs(kTiles) / kChunk;
  constexpr int kMatrices = kChunk / kMatrixInputs;
  uint4 words[kTiles][kPieces];
  uint4 x[kChunks * kMatrices];
  uint32_t scales[kTiles * kChunks];  // two fp16 each
  uint8_t zeros[kTiles * kChunks][2];
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      words[tile][piece] = weights.Load(stage, tile, piece);
    }
#pragma unroll
    for (int i = 2 * piece; i < 2 * piece + 2; ++i) {
      x[i] = LoadMatrices(x_at + i * kMatrixInputs * static_cast<int>(sizeof(T)));
    }
  }
  weights.LoadScales(stage, scales);
  weights.LoadZeros(stage, zeros);
  __syncwarp();  // all lanes have read the scales
  weights.Start(stage);

  float products[kChunks][kTiles][4] = {};
#pragma unroll
  for (int i = 0; i < kMatrices; ++i) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int at = chunk * kMatrices + i;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint4& four = words[tile][at / 2];
        float(&to)[4] = products[chunk][tile];
        uint32_t a[4];
        Values::Extract(at % 2 == 0 ? four.x : four.z, a);
        stream_matmul::Multiply<T>(to, a[0], a[1], a[2], a[3], x[at].x, x[at].y);
        Values::Extract(at % 2 == 0 ? four.y : four.w, a);
        stream_matmul::Multiply<T>(to, a[0], a[1], a[2], a[3], x[at].z, x[at].w);
      }
    }
  }
  constexpr float kShift = kFloatShift - Values::kOffset;
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const float2 x_sum = *reinterpret_cast<const float2*>(x_sums + chunk * sums_stride);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int i = tile * kChunks + chunk;
      const __half2 both = *reinterpret_cast<const __half2*>(&scales[i]);
      const float zero = ShiftedFloat(zeros[i][0]) - kShift;
      const float high_zero =
          __fmaf_rn(ShiftedFloat(zeros[i][1]), Values::kHighFactor, -kShift * Values::kHighFactor);
      const float scale = __low2float(both);
      const float high_scale = __high2float(both);
      const float(&product)[4] = products[chunk][tile];
      sums[tile][0] += scale * (product[0] - zero * x_sum.x);
      sums[tile][1] += scale * (product[1] - zero * x_sum.y);
      sums[tile][2] += high_scale * (product[2] - high_zero * x_sum.x);
      sums[tile][3] += high_scale * (product[3] - high_zero * x_sum.y);
    }
  }
}

}  // namespace ferrite::stream_int4

// Pieces of the 4-bit weight-streaming product: weights on their way through shared memory, and a
// warp's step over them. W is the first operand of the tensor cores, x the second.
#pragma once

#include "cuda/kernels/int4_weight.h"
#include "cuda/kernels/stream_matmul_parts.cuh"

namespace ferrite::stream_int4 {

using stream_matmul::kLanePieces;
using stream_matmul::kStageBytes;
using stream_matmul::kThreads;
using stream_matmul::kWarps;

inline constexpr int kMatrixInputs = 32;  // of x that one load of four 8 x 8 matrices covers
inline constexpr int kMaxChunk = 128;

// Inputs that a warp covers in a stage, for `tiles` tiles of outputs at a time.
__host__ __device__ constexpr int StepInputs(int tiles) {
  return kLanePieces / tiles * kInt4TileInputs;
}

struct Plan {
  stream_matmul::Plan shape;
  // Inputs whose products are summed before they are scaled, all of one group: 32, 64 or 128.
  int32_t chunk = 0;
  int32_t groups = 0;         // of the weight's scales
  float groups_an_input = 0;  // 1 / group_size
};

// Chunks of a stage's tiles: each has 16 scales and 16 zero points in the stage.
__host__ __device__ constexpr int StageChunks(int chunk) { return StepInputs(1) / chunk; }
__host__ __device__ constexpr int ScaleBytes(int chunk) {
  return StageChunks(chunk) * kInt4TileOutputs * 3;
}

// Four registers of the first operand out of a word of a tile, as numbers (kOffset + q) / kScale of
// the register's output. The numbers are exact, and so are their products in fp32.
template <typename T>
struct Nibbles;

// A bare nibble is the subnormal q 2^-24, and q 2^-20 four bits up.
template <>
struct Nibbles<__half> {
  static constexpr float kOffset = 0;
  static constexpr uint32_t kOnes = 0x00010001;      // 1 / kScale, for outputs lane / 4
  static constexpr uint32_t kHighOnes = 0x00100010;  // for outputs lane / 4 + 8
  static constexpr float kScale = 16777216.0f;
  static constexpr float kHighScale = 1048576.0f;
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
  static constexpr uint32_t kOnes = 0x3F803F80;
  static constexpr uint32_t kHighOnes = 0x3F803F80;
  static constexpr float kScale = 1.0f;
  static constexpr float kHighScale = 1.0f;
  __device__ static void Extract(uint32_t word, uint32_t (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = ((word >> (4 * i)) & 0x000F000F) | 0x43004300;
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

// A warp's weights, scales and zero points on their way through its own part of the ring.
template <int kTiles>
class WeightStream {
 public:
  static constexpr int kPieces = kLanePieces / kTiles;

  // `ring` has room for a stage's tiles times the number of stages, `scales` for their scales.
  __device__ WeightStream(const Int4Weight& weight, const Plan& plan, char* ring, char* scales,
                          int slice, int group)
      : ring_(stream_matmul::SharedAddress(ring) + threadIdx.x * 16),
        scales_(scales + threadIdx.x / 32 * ScaleBytes(plan.chunk)),
        stage_scales_(kWarps * ScaleBytes(plan.chunk)),
        units_(plan.shape.units),
        unit_(group),
        unit_step_(plan.shape.blocks / plan.shape.slices),
        row_bytes_(size_t{1} * weight.inputs * (kInt4TileOutputs / 2)),
        groups_an_input_(plan.groups_an_input) {
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    begin_ = slice * plan.shape.slice_inputs + warp * StepInputs(kTiles);
    wrap_ = (slice + 1) * plan.shape.slice_inputs;
    end_ = min(weight.inputs, wrap_);
    k_ = begin_;
    from_ = reinterpret_cast<const char*>(weight.tiles) + group * row_bytes_ + lane * 16;

    // Lanes up to 15 copy scales, two to a chunk, and those from 16 on zero points.
    const int chunks = StageChunks(plan.chunk);
    const bool zeros = lane >= 16;
    const int chunk = zeros ? lane - 16 : lane / 2;
    copies_scales_ = chunk < chunks && (!zeros || weight.zeros != nullptr);
    scale_bytes_ = kInt4TileOutputs * (zeros ? 1 : 2);
    scale_to_ =
        stream_matmul::SharedAddress(scales_) + (zeros ? chunks * 32 + chunk * 16 : lane * 16);
    scale_k_ = chunk % (chunks / kTiles) * plan.chunk;
    scale_row_bytes_ = plan.groups * scale_bytes_;
    const int row = group + chunk / (chunks / kTiles) * units_;
    scale_from_ = (zeros ? reinterpret_cast<const char*>(weight.zeros)
                         : reinterpret_cast<const char*>(weight.scales) + lane % 2 * 16) +
                  int64_t{row} * scale_row_bytes_;
  }

  // Starts the copies of the next step to `stage`, or of nothing once all are under way.
  __device__ void Start(int stage) {
    if (unit_ < units_) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const char* from = from_ + tile * units_ * row_bytes_ + int64_t{k_} * 8;
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) {
          const bool valid = k_ + piece * kInt4TileInputs < end_;
          stream_matmul::CopyAsync(Address(stage, tile, piece), valid ? from + piece * 512 : from_,
                                   valid);
        }
      }
      if (copies_scales_) {
        const int k = k_ + scale_k_;
        const bool valid = k < end_;
        // Exact: half an input off any whole number.
        const int group = __float2int_rd((static_cast<float>(k) + 0.5f) * groups_an_input_);
        stream_matmul::CopyAsync(scale_to_ + stage * stage_scales_,
                                 valid ? scale_from_ + group * scale_bytes_ : scale_from_, valid);
      }
      k_ += kWarps * StepInputs(kTiles);
      if (k_ >= wrap_) {
        k_ = begin_;
        unit_ += unit_step_;
        from_ += unit_step_ * row_bytes_;
        scale_from_ += int64_t{unit_step_} * scale_row_bytes_;
      }
    }
    stream_matmul::CommitCopies();
  }

  __device__ uint4 Load(int stage, int tile, int piece) const {
    return stream_matmul::LoadShared(Address(stage, tile, piece));
  }

  // For outputs lane / 4 and lane / 4 + 8.
  __device__ float2 Scales(int stage, int chunk) const {
    const auto* from = reinterpret_cast<const __half*>(scales_ + stage * stage_scales_) +
                       chunk * kInt4TileOutputs + threadIdx.x % 32 / 4;
    return make_float2(__half2float(from[0]), __half2float(from[8]));
  }
  __device__ float2 Zeros(int stage, int chunk, int chunks) const {
    const auto* from =
        reinterpret_cast<const uint8_t*>(scales_ + stage * stage_scales_ + chunks * 32) +
        chunk * kInt4TileOutputs + threadIdx.x % 32 / 4;
    return make_float2(from[0], from[8]);
  }

 private:
  __device__ uint32_t Address(int stage, int tile, int piece) const {
    return ring_ + stage * kStageBytes + (tile * kPieces + piece) * (kThreads * 16);
  }

  uint32_t ring_;
  char* scales_;
  int stage_scales_;
  int units_;
  int unit_;
  int unit_step_;
  size_t row_bytes_;  // of a row of tiles
  float groups_an_input_;
  const char* from_;  // this lane's of the unit's first tile
  int begin_;
  int wrap_;
  int end_;
  int k_;
  bool copies_scales_;
  int scale_bytes_;  // of a group
  int scale_row_bytes_;
  int scale_k_;
  uint32_t scale_to_;
  const char* scale_from_;
};

// sums[tile] += a step's weights times x, over the scales of Nibbles. x_at[i] is where this lane's
// row of matrices of the step's i-th kMaxChunk inputs is.
template <typename T, int kTiles, int kChunk>
__device__ __forceinline__ void MultiplyStep(const WeightStream<kTiles>& weights, int stage,
                                             const uint32_t (&x_at)[2], bool has_zeros,
                                             float (&sums)[kTiles][4]) {
  using Values = Nibbles<T>;
  constexpr int kPieces = WeightStream<kTiles>::kPieces;
  constexpr int kChunks = StepInputs(kTiles) / kChunk;
  constexpr int kMatrices = kChunk / kMatrixInputs;
  uint4 words[kTiles][kPieces];
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      words[tile][piece] = weights.Load(stage, tile, piece);
    }
  }
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    float ones[4] = {};  // what a weight of one makes of x
    float products[kTiles][4] = {};
#pragma unroll
    for (int i = 0; i < kMatrices; ++i) {
      const int at = chunk * kMatrices + i;
      constexpr int kHalf = kMaxChunk / kMatrixInputs;
      const uint4 x = LoadMatrices(x_at[at / kHalf] + at % kHalf * kMatrixInputs * sizeof(T));
      constexpr uint32_t kOnes = Values::kOnes;
      constexpr uint32_t kHighOnes = Values::kHighOnes;
      stream_matmul::Multiply<T>(ones, kOnes, kHighOnes, kOnes, kHighOnes, x.x, x.y);
      stream_matmul::Multiply<T>(ones, kOnes, kHighOnes, kOnes, kHighOnes, x.z, x.w);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint4& four = words[tile][at / 2];
        uint32_t a[4];
        Values::Extract(at % 2 == 0 ? four.x : four.z, a);
        stream_matmul::Multiply<T>(products[tile], a[0], a[1], a[2], a[3], x.x, x.y);
        Values::Extract(at % 2 == 0 ? four.y : four.w, a);
        stream_matmul::Multiply<T>(products[tile], a[0], a[1], a[2], a[3], x.z, x.w);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int place = tile * kChunks + chunk;
      const float2 scale = weights.Scales(stage, place);
      const float2 zero =
          has_zeros ? weights.Zeros(stage, place, kTiles * kChunks) : make_float2(8, 8);
      const float low = zero.x + Values::kOffset;
      const float high = zero.y + Values::kOffset;
      sums[tile][0] += scale.x * (products[tile][0] - low * ones[0]);
      sums[tile][1] += scale.x * (products[tile][1] - low * ones[1]);
      sums[tile][2] += scale.y * (products[tile][2] - high * ones[2]);
      sums[tile][3] += scale.y * (products[tile][3] - high * ones[3]);
    }
  }
}

}  // namespace ferrite::stream_int4

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

// A block's threads are [kTeams][kThreads]: each team of warps works on units of its own, so that
// there are enough warps to hide what each waits for, and all share x.
inline constexpr int kTeams = 2;
inline constexpr int kMaxRing = 5;  // stages a team has at most, and at least
inline constexpr int kMinRing = 2;
inline constexpr int kSumBuffers = 2;  // a team has, for sums of its warps

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
  uint32_t group_factor = 0;  // input k is of group k * group_factor / 2^32
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

// As stream_matmul::CopyAsync, and nothing at all unless `wanted`.
__device__ __forceinline__ void CopyAsyncIf(bool wanted, uint32_t to, const void* from,
                                            bool valid) {
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.s32 wanted, %3, 0;\n"
      "@wanted cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n"
      "}" ::"r"(to),
      "l"(from), "r"(valid ? 16 : 0), "r"(static_cast<int>(wanted))
      : "memory");
}

// A warp's weights, scales and zero points on their way through its own part of the ring.
template <int kTiles>
class WeightStream {
 public:
  static constexpr int kPieces = kLanePieces / kTiles;

  // `ring` has room for a stage's tiles times the number of stages, `scales` for their scales.
  __device__ WeightStream(const Int4Weight& weight, const Plan& plan, char* ring, char* scales,
                          int slice, int first_unit)
      : ring_(stream_matmul::SharedAddress(ring) + threadIdx.x * 16),
        scales_(scales + threadIdx.x / 32 * ScaleBytes(plan.chunk)),
        stage_scales_(kWarps * ScaleBytes(plan.chunk)),
        unit_(first_unit),
        units_(plan.shape.units),
        unit_step_(plan.shape.blocks / plan.shape.slices * kTeams),
        group_factor_(plan.group_factor) {
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    begin_ = slice * plan.shape.slice_inputs + warp * StepInputs(kTiles);
    wrap_ = (slice + 1) * plan.shape.slice_inputs;
    end_ = min(weight.inputs, wrap_);
    k_ = begin_;
    const int64_t row_bytes = int64_t{weight.inputs} * (kInt4TileOutputs / 2);
    second_ = units_ * row_bytes;
    unit_bytes_ = unit_step_ * row_bytes;
    from_ = reinterpret_cast<const char*>(weight.tiles) + first_unit * row_bytes + lane * 16;

    // Lanes up to 15 copy scales, two to a chunk, and those from 16 on zero points.
    const int chunks = StageChunks(plan.chunk);
    const bool zeros = lane >= 16;
    const int chunk = zeros ? lane - 16 : lane / 2;
    copies_scales_ = chunk < chunks && (!zeros || weight.zeros != nullptr);
    scale_bytes_ = kInt4TileOutputs * (zeros ? 1 : 2);
    scale_to_ =
        stream_matmul::SharedAddress(scales_) + (zeros ? chunks * 32 + chunk * 16 : lane * 16);
    scale_k_ = chunk % (chunks / kTiles) * plan.chunk;
    const int row_scale_bytes = plan.groups * scale_bytes_;
    unit_scale_bytes_ = unit_step_ * row_scale_bytes;
    const int row = first_unit + chunk / (chunks / kTiles) * units_;
    scale_from_ = (zeros ? reinterpret_cast<const char*>(weight.zeros)
                         : reinterpret_cast<const char*>(weight.scales) + lane % 2 * 16) +
                  int64_t{row} * row_scale_bytes;
  }

  // Starts the copies of the next step to `stage`, or of nothing once all are under way. No
  // branches: it is to be mixed with the products.
  __device__ __forceinline__ void Start(int stage) {
    const bool wanted = unit_ < units_;
    const char* from = from_ + int64_t{k_} * 8;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        CopyAsyncIf(wanted, Address(stage, tile, piece), from + tile * second_ + piece * kTileBytes,
                    k_ + piece * kInt4TileInputs < end_);
      }
    }
    const int k = k_ + scale_k_;
    CopyAsyncIf(wanted && copies_scales_, scale_to_ + stage * stage_scales_,
                scale_from_ + static_cast<int>(__umulhi(k, group_factor_)) * scale_bytes_,
                k < end_);
    stream_matmul::CommitCopies();
    k_ += kWarps * StepInputs(kTiles);
    const bool next_unit = k_ >= wrap_;
    k_ = next_unit ? begin_ : k_;
    unit_ += next_unit ? unit_step_ : 0;
    from_ += next_unit ? unit_bytes_ : 0;
    scale_from_ += next_unit ? unit_scale_bytes_ : 0;
  }

  __device__ uint4 Load(int stage, int tile, int piece) const {
    return stream_matmul::LoadShared(Address(stage, tile, piece));
  }

  // Of outputs lane / 4 and lane / 4 + 8 of a chunk, as they are.
  struct Scales {
    __half scale[2];
    uint8_t zero[2];
  };
  template <int kChunk>
  __device__ __forceinline__ Scales LoadScales(int stage, int chunk, bool has_zeros) const {
    const char* from = scales_ + stage * stage_scales_;
    const int output = threadIdx.x % 32 / 4;
    const auto* scales = reinterpret_cast<const __half*>(from) + chunk * kInt4TileOutputs + output;
    const auto* zeros = reinterpret_cast<const uint8_t*>(from) + StageChunks(kChunk) * 32 +
                        chunk * kInt4TileOutputs + output;
    return {{scales[0], scales[8]},
            {has_zeros ? zeros[0] : uint8_t{8}, has_zeros ? zeros[8] : uint8_t{8}}};
  }

 private:
  static constexpr int kTileBytes = kInt4TileWords * 4;

  __device__ uint32_t Address(int stage, int tile, int piece) const {
    return ring_ + stage * kStageBytes + (tile * kPieces + piece) * (kThreads * 16);
  }

  uint32_t ring_;
  const char* scales_;
  int stage_scales_;
  int unit_;
  int units_;
  int unit_step_;
  uint32_t group_factor_;
  int begin_;
  int wrap_;
  int end_;
  int k_;
  const char* from_;    // this lane's of the unit's first tile
  int64_t second_;      // from there to the same of the second row of tiles
  int64_t unit_bytes_;  // and to that of the next unit
  bool copies_scales_;
  int scale_bytes_;  // of a group
  int scale_k_;
  uint32_t scale_to_;
  const char* scale_from_;
  int unit_scale_bytes_;
};

// sums[tile] += a step's weights times x, over the scales of Nibbles, and the start of the stage's
// next copies. x_at[i] is where this lane's row of matrices of the step's i-th kMaxChunk inputs is.
template <typename T, int kTiles, int kChunk>
__device__ __forceinline__ void MultiplyStep(WeightStream<kTiles>& weights, int stage,
                                             const uint32_t (&x_at)[2], bool has_zeros,
                                             float (&sums)[kTiles][4]) {
  using Values = Nibbles<T>;
  constexpr int kPieces = WeightStream<kTiles>::kPieces;
  constexpr int kChunks = StepInputs(kTiles) / kChunk;
  constexpr int kMatrices = kChunk / kMatrixInputs;
  uint4 words[kTiles][kPieces];
  uint4 x[kChunks * kMatrices];
  typename WeightStream<kTiles>::Scales scales[kTiles][kChunks];
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      words[tile][piece] = weights.Load(stage, tile, piece);
    }
  }
#pragma unroll
  for (int i = 0; i < kChunks * kMatrices; ++i) {
    constexpr int kHalf = kMaxChunk / kMatrixInputs;
    x[i] = LoadMatrices(x_at[i / kHalf] + i % kHalf * kMatrixInputs * sizeof(T));
  }
#pragma unroll
  for (int i = 0; i < kTiles * kChunks; ++i) {
    scales[i / kChunks][i % kChunks] = weights.template LoadScales<kChunk>(stage, i, has_zeros);
  }
  __syncwarp();  // all lanes have read the scales
  weights.Start(stage);

  float ones[kChunks][4] = {};  // what a weight of one makes of x
  float products[kChunks][kTiles][4] = {};
#pragma unroll
  for (int i = 0; i < kMatrices; ++i) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      constexpr uint32_t kOnes = Values::kOnes;
      constexpr uint32_t kHighOnes = Values::kHighOnes;
      const int at = chunk * kMatrices + i;
      stream_matmul::Multiply<T>(ones[chunk], kOnes, kHighOnes, kOnes, kHighOnes, x[at].x, x[at].y);
      stream_matmul::Multiply<T>(ones[chunk], kOnes, kHighOnes, kOnes, kHighOnes, x[at].z, x[at].w);
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
#pragma unroll
  for (int i = 0; i < kTiles * kChunks; ++i) {
    const int tile = i / kChunks;
    const int chunk = i % kChunks;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float zero = scales[tile][chunk].zero[j / 2] + Values::kOffset;
      sums[tile][j] += __half2float(scales[tile][chunk].scale[j / 2]) *
                       (products[chunk][tile][j] - zero * ones[chunk][j]);
    }
  }
}

}  // namespace ferrite::stream_int4

// Pieces of the weight-streaming product: tensor-core steps, the ring of weights in shared memory
// and the activations beside it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/kernels/vector.cuh"

namespace ferrite::stream_matmul {

inline constexpr int kWarps = 8;
inline constexpr int kThreads = kWarps * 32;
inline constexpr int kTileOutputs = 8;   // rows of W that one tensor-core step covers
inline constexpr int kPieceInputs = 32;  // inputs that sixteen bytes a lane cover, four lanes a row
inline constexpr int kLanePieces = 4;    // sixteen-byte pieces a lane has in a stage
inline constexpr int kStageBytes = kThreads * kLanePieces * 16;
// Depths of the ring: up to kMaxDeepRows rows (more only get slower), otherwise, and where x leaves
// no room for that.
inline constexpr int kDeepStages = 10;
inline constexpr int kMaxDeepRows = 2;
inline constexpr int kStages = 6;
inline constexpr int kMinStages = 4;
inline constexpr int kSegment = 512;  // floats whose squares a warp sums at once

// Inputs that a warp covers in a stage, for `tiles` tiles at a time.
__host__ __device__ constexpr int StepInputs(int tiles) {
  return kLanePieces / tiles * kPieceInputs;
}

inline constexpr int kMaxStepInputs = StepInputs(1);

// Buffers for the warps' sums of units on their way to the warp that adds them up.
__host__ __device__ constexpr int SumBuffers(int tiles) { return 4 / tiles; }

inline constexpr int kStaticSharedBytes = 128;  // at most, beside the dynamic

__host__ __device__ constexpr int RoundUp(int value, int to) { return (value + to - 1) / to * to; }

struct Plan {
  int32_t blocks = 0;
  int32_t units = 0;         // tiles, or pairs of a gate and an up tile
  int32_t slices = 0;        // parts of the inputs, one a block
  int32_t slice_inputs = 0;  // a multiple of kMaxStepInputs
  int32_t x_stride = 0;      // 16-bit values between rows of x in shared memory
  int32_t stages = 0;        // of the ring
  size_t shared_bytes = 0;
};

// Sixteen bytes to shared memory past L1; zeros where not `valid`.
__device__ __forceinline__ void CopyAsync(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most that many of this thread's groups of copies are under way.
template <int kOutstanding>
__device__ __forceinline__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOutstanding) : "memory");
}

__device__ __forceinline__ uint4 LoadShared(uint32_t from) {
  uint4 bits;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
               : "r"(from)
               : "memory");
  return bits;
}

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Barriers that some arrive at and others wait for (mbarrier, PTX ISA).
__device__ __forceinline__ void InitBarrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(arrivals)
               : "memory");
}

__device__ __forceinline__ void ArriveAtBarrier(uint64_t* barrier) {
  asm volatile(
      "{\n"
      ".reg .b64 state;\n"
      "mbarrier.arrive.shared.b64 state, [%0];\n"
      "}" ::"r"(SharedAddress(barrier))
      : "memory");
}

// Until the phase of that parity, the first being 0, is complete.
__device__ __forceinline__ void WaitBarrier(uint64_t* barrier, int parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "mbarrier.test_wait.parity.shared.b64 complete, [%1], %2;\n"
        "selp.u32 %0, 1, 0, complete;\n"
        "}"
        : "=r"(done)
        : "r"(SharedAddress(barrier)), "r"(parity)
        : "memory");
  }
}

// sums[16 rows of x, 8 outputs] += x[16, 16 inputs] * w[8, 16 inputs]^T. The order of the inputs is
// free as long as x and w share it.
template <typename T>
__device__ __forceinline__ void Multiply(float (&sums)[4], uint32_t x0, uint32_t x0_high,
                                         uint32_t x1, uint32_t x1_high, uint32_t w0, uint32_t w1);
template <>
__device__ __forceinline__ void Multiply<__half>(float (&sums)[4], uint32_t x0, uint32_t x0_high,
                                                 uint32_t x1, uint32_t x1_high, uint32_t w0,
                                                 uint32_t w1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(x0), "r"(x0_high), "r"(x1), "r"(x1_high), "r"(w0), "r"(w1));
}
template <>
__device__ __forceinline__ void Multiply<__nv_bfloat16>(float (&sums)[4], uint32_t x0,
                                                        uint32_t x0_high, uint32_t x1,
                                                        uint32_t x1_high, uint32_t w0,
                                                        uint32_t w1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(x0), "r"(x0_high), "r"(x1), "r"(x1_high), "r"(w0), "r"(w1));
}

// A lane's weights on their way through its own part of the ring: nobody else reads what it copied,
// so no barrier is needed. Lane 4 r + q takes the q-th eight of every 32 inputs of row r of a tile.
template <typename T, int kTiles>
class WeightStream {
 public:
  static constexpr int kPieces = kLanePieces / kTiles;

  __device__ WeightStream(const T* weight, const Plan& plan, int inputs, int tile_outputs,
                          uint32_t ring, int slice, int group)
      : weight_(weight),
        inputs_(inputs),
        tile_outputs_(tile_outputs),
        ring_(ring + threadIdx.x * 16),
        units_(plan.units),
        groups_(plan.blocks / plan.slices),
        unit_(group) {
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    begin_ = slice * plan.slice_inputs + warp * StepInputs(kTiles) + lane % 4 * 8;
    end_ = min(inputs, (slice + 1) * plan.slice_inputs);
    k_ = begin_;
    wrap_ = (slice + 1) * plan.slice_inputs;
    row_ = lane / 4;
  }

  // Starts the copy of the next step's pieces to `stage`, or of nothing once all are under way.
  __device__ void Start(int stage) {
    if (unit_ < units_) {
      const int output = unit_ * kTileOutputs + row_;
      const bool row_valid = output < tile_outputs_;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const T* row = weight_ + (int64_t{output} + tile * int64_t{tile_outputs_}) * inputs_;
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) {
          const int k = k_ + piece * kPieceInputs;
          const bool valid = row_valid && k < end_;
          CopyAsync(Address(stage, tile, piece), valid ? row + k : weight_, valid);
        }
      }
      k_ += kWarps * StepInputs(kTiles);
      if (k_ >= wrap_) {
        k_ = begin_;
        unit_ += groups_;
      }
    }
    CommitCopies();
  }

  __device__ uint4 Load(int stage, int tile, int piece) const {
    return LoadShared(Address(stage, tile, piece));
  }

 private:
  __device__ uint32_t Address(int stage, int tile, int piece) const {
    return ring_ + stage * kStageBytes + (tile * kPieces + piece) * (kThreads * 16);
  }

  const T* weight_;
  int inputs_;
  int tile_outputs_;
  uint32_t ring_;
  int units_;
  int groups_;
  int unit_;
  int begin_;
  int end_;
  int wrap_;
  int k_;
  int row_;
};

}  // namespace ferrite::stream_matmul

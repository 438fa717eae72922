// How StreamInt4 shares out its work.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels/stream_int4.h"
#include "cuda/kernels/stream_int4_limits.h"
#include "cuda/kernels/stream_matmul_parts.cuh"

namespace ferrite::stream_int4 {

using stream_matmul::kLanePieces;
using stream_matmul::kStageBytes;
using stream_matmul::kThreads;
using stream_matmul::kWarps;

// A block's threads are [teams][kThreads]: each team of warps works on units of its own, so that
// there are enough warps to hide what each waits for, and all share x. One team where shared memory
// is too small for two rings.
inline constexpr int kMaxTeams = 2;
// Stages a team has, and where shared memory is small. More of them hold more than the memory needs
// to be busy, and what other blocks wait for queues behind it; so do activations behind what is
// started before them, which is why that is one stage.
inline constexpr int kRing = 3;
inline constexpr int kMinRing = 2;
inline constexpr int kEarlyStages = 1;
inline constexpr int kLargeChunk = 128;
inline constexpr int kSumBuffers = 2;  // a team has, for sums of its warps

inline constexpr int kMatrixInputs = 32;  // of x that one load of four 8 x 8 matrices covers

// Inputs that a warp covers in a stage, for `tiles` tiles of outputs at a time.
__host__ __device__ constexpr int StepInputs(int tiles) {
  return kLanePieces / tiles * kInt4TileInputs;
}
inline constexpr int kMaxStepInputs = StepInputs(1);

// Chunks of a stage's tiles: each has 16 scales and 16 zero points in the stage.
__host__ __device__ constexpr int StageChunks(int chunk) { return StepInputs(1) / chunk; }
__host__ __device__ constexpr int ScaleBytes(int chunk) {
  return StageChunks(chunk) * kInt4TileOutputs * 3;
}

// Of sixteen inputs, how many a thread takes at most where x goes as bytes.
inline constexpr int kDigitTimes = 2;
inline constexpr int kNormDigitTimes = 1;  // with a norm
inline constexpr int kDigits = 3;          // bytes of an input
// Bytes between digits in shared memory: so that eight lanes' matrices meet all banks once.
__host__ __device__ constexpr int DigitStride(int slice_inputs) { return slice_inputs + 16; }

struct Plan {
  stream_matmul::Plan shape;  // slice_inputs is a multiple of kMaxStepInputs of this kernel
  int32_t teams = 0;
  int32_t block_groups = 0;  // of `slices` blocks that share units
  // Inputs whose products are summed before they are scaled, all of one group: 32, 64 or 128.
  int32_t chunk = 0;
  int32_t groups = 0;         // of the weight's scales
  uint32_t group_factor = 0;  // input k is of group k * group_factor / 2^32
  bool digits = false;        // whether x goes as bytes (stream_int4_bytes.cuh)
  int32_t sums_stride = 0;    // floats between chunks in the table of x's sums, even
};

// `sized` becomes `arguments` with the weight's sizes, and `plan` the plan for them; an error where
// they are not what stream_int4.h asks for.
cudaError_t Prepare(const StreamMatmulArguments& arguments, const Int4Weight& weight,
                    const DeviceLimits& limits, StreamMatmulArguments* sized, Plan* plan);

}  // namespace ferrite::stream_int4

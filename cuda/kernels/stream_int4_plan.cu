#include "cuda/kernels/stream_int4_plan.cuh"

#include <algorithm>

namespace ferrite {
namespace stream_int4 {
namespace {

using stream_matmul::RoundUp;
using Epilogue = StreamMatmulArguments::Epilogue;

// So that Plan::group_factor is exact.
constexpr int32_t kMaxInputs = 65536;

// With less a block has one team.
constexpr size_t kTwoTeamsSharedBytes = size_t{128} << 10;

bool IsValid(const StreamMatmulArguments& a, const Int4Weight& weight) {
  const int tiles = a.epilogue == Epilogue::kSiluMul ? 2 : 1;
  return a.rows >= 1 && a.rows <= kMaxStreamInt4Rows && weight.inputs >= kInt4TileInputs &&
         weight.inputs % kInt4TileInputs == 0 && weight.inputs <= kMaxInputs &&
         weight.outputs >= tiles * kInt4TileOutputs &&
         weight.outputs % (tiles * kInt4TileOutputs) == 0 && weight.group_size >= kMatrixInputs &&
         weight.group_size % kMatrixInputs == 0 && weight.inputs % weight.group_size == 0;
}

// Whether x may go as bytes, in slices of so many inputs.
bool CanTakeDigits(const StreamMatmulArguments& a, const Int4Weight& weight, const Plan& plan) {
  const int threads = plan.teams * stream_matmul::kThreads;
  const bool fits =
      a.residual == nullptr
          ? plan.shape.slice_inputs <= 16 * kDigitTimes * threads
          : plan.shape.slices == 1 && plan.shape.slice_inputs <= 16 * kNormDigitTimes * threads;
  return a.rows == 1 && weight.zeros == nullptr && weight.order == nullptr &&
         plan.chunk == kLargeChunk && fits;
}

// As for stream_matmul: fewest slices for which x fits beside a ring of the least depth, then the
// deeper ring.
cudaError_t MakePlan(const StreamMatmulArguments& a, const Int4Weight& weight,
                     const DeviceLimits& limits, Plan* full_plan) {
  const int group_size = weight.group_size;
  full_plan->chunk = group_size % kLargeChunk == 0 ? kLargeChunk : group_size % 64 == 0 ? 64 : 32;
  full_plan->groups = a.inputs / group_size;
  full_plan->group_factor =
      static_cast<uint32_t>(((uint64_t{1} << 32) + group_size - 1) / group_size);
  full_plan->sums_stride = RoundUp(a.rows, 2);

  stream_matmul::Plan* plan = &full_plan->shape;
  const int tiles = a.epilogue == Epilogue::kSiluMul ? 2 : 1;
  plan->units = a.outputs / tiles / kInt4TileOutputs;
  plan->shared_bytes = limits.block_shared_bytes - stream_matmul::kStaticSharedBytes;
  full_plan->teams = plan->shared_bytes < kTwoTeamsSharedBytes ? 1 : kMaxTeams;
  const size_t stage_bytes =
      size_t(full_plan->teams) * (kStageBytes + kWarps * ScaleBytes(full_plan->chunk));
  const size_t team_sums_bytes = size_t{kSumBuffers} * kThreads * tiles * sizeof(float4);
  const size_t segments = RoundUp(a.inputs, stream_matmul::kSegment) / stream_matmul::kSegment;
  if (a.residual != nullptr && (segments + 1) * a.rows * sizeof(float) > team_sums_bytes) {
    return cudaErrorInvalidValue;
  }
  for (int slices = 1; slices <= limits.multiprocessors; ++slices) {
    plan->slice_inputs = RoundUp((a.inputs + slices - 1) / slices, kMaxStepInputs);
    plan->slices = (a.inputs + plan->slice_inputs - 1) / plan->slice_inputs;
    plan->x_stride = plan->slice_inputs + 8;  // so that eight rows' matrices meet all banks once
    full_plan->digits = CanTakeDigits(a, weight, *full_plan);
    const size_t x_bytes = full_plan->digits ? size_t{kDigits} * DigitStride(plan->slice_inputs)
                                             : size_t{2} * a.rows * plan->x_stride +
                                                   sizeof(float) * full_plan->sums_stride *
                                                       (plan->slice_inputs / full_plan->chunk);
    const size_t fixed = full_plan->teams * team_sums_bytes + x_bytes;
    const int groups = limits.multiprocessors / plan->slices;
    // Not if many multiprocessors were left over for want of a whole group.
    if (fixed + kMinRing * stage_bytes <= plan->shared_bytes &&
        groups * plan->slices * 16 >= limits.multiprocessors * 15) {
      const size_t fit = (plan->shared_bytes - fixed) / stage_bytes;
      plan->stages = fit >= kRing ? kRing : kMinRing;
      full_plan->block_groups = std::min(groups, plan->units);
      plan->blocks = full_plan->block_groups * plan->slices;
      return cudaSuccess;
    }
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t Prepare(const StreamMatmulArguments& arguments, const Int4Weight& weight,
                    const DeviceLimits& limits, StreamMatmulArguments* sized, Plan* plan) {
  if (!IsValid(arguments, weight)) {
    return cudaErrorInvalidValue;
  }
  *sized = arguments;
  sized->inputs = weight.inputs;
  sized->outputs = weight.outputs;
  return MakePlan(*sized, weight, limits, plan);
}

cudaError_t SizeScratch(const StreamMatmulArguments& arguments, const Int4Weight& weight,
                        const DeviceLimits& limits, StreamMatmulScratch* scratch) {
  *scratch = {};
  StreamMatmulArguments a;
  Plan plan;
  const cudaError_t error = Prepare(arguments, weight, limits, &a, &plan);
  if (error == cudaSuccess && plan.shape.slices > 1) {
    const size_t tiles = a.outputs / kInt4TileOutputs;  // units of any epilogue have them all
    scratch->partials = tiles * plan.shape.slices * 32 * 4;
    scratch->counters = tiles;
  }
  return error;
}

}  // namespace stream_int4

cudaError_t SizeStreamInt4Scratch(const StreamMatmulArguments& arguments, const Int4Weight& weight,
                                  StreamMatmulScratch* scratch) {
  DeviceLimits limits;
  if (const cudaError_t error = GetDeviceLimits(&limits); error != cudaSuccess) {
    return error;
  }
  return stream_int4::SizeScratch(arguments, weight, limits, scratch);
}

}  // namespace ferrite

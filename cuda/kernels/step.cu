#include "cuda/kernels/launch.cuh"
#include "cuda/kernels/step.h"

namespace ferrite {
namespace {

constexpr int kThreads = 128;

unsigned BlocksFor(int32_t items) {
  return static_cast<unsigned>((items + kThreads - 1) / kThreads);
}

__global__ void ApplySlotChangesKernel(SlotChanges changes, int32_t blocks_per_slot,
                                       int32_t* block_tables, GpuSamplingParams* params) {
  const int32_t i = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  AllowNext();
  WaitForPrevious();
  if (i < changes.num_tables) {
    const TableChange change = changes.tables[i];
    block_tables[int64_t{change.slot} * blocks_per_slot + change.index] = change.block;
  }
  if (i < changes.num_params) {
    params[changes.param_slots[i]] = changes.params[i];
  }
}

__global__ void ResolveInputsKernel(const int32_t* input_rows, const int32_t* cu_seqlens,
                                    int32_t num_sequences, const int32_t* sampled,
                                    int32_t* token_ids) {
  const int32_t s = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  AllowNext();
  WaitForPrevious();
  if (s < num_sequences && input_rows[s] >= 0) {
    token_ids[cu_seqlens[s]] = sampled[input_rows[s]];
  }
}

}  // namespace

cudaError_t ApplySlotChanges(const SlotChanges& changes, int32_t blocks_per_slot,
                             int32_t* block_tables, GpuSamplingParams* params,
                             cudaStream_t stream) {
  const int32_t items =
      changes.num_tables > changes.num_params ? changes.num_tables : changes.num_params;
  if (items == 0) {
    return cudaSuccess;
  }
  return LaunchOverlapped(ApplySlotChangesKernel, BlocksFor(items), kThreads, 0, stream, changes,
                          blocks_per_slot, block_tables, params);
}

cudaError_t ResolveInputs(const int32_t* input_rows, const int32_t* cu_seqlens,
                          int32_t num_sequences, const int32_t* sampled, int32_t* token_ids,
                          cudaStream_t stream) {
  if (num_sequences == 0) {
    return cudaSuccess;
  }
  return LaunchOverlapped(ResolveInputsKernel, BlocksFor(num_sequences), kThreads, 0, stream,
                          input_rows, cu_seqlens, num_sequences, sampled, token_ids);
}

}  // namespace ferrite

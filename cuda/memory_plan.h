// What goes where in a GPU's memory, decided before anything is allocated. Arithmetic alone.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/model/model_config.h"

namespace ferrite {

// What cudaMalloc takes from the device for one allocation of `bytes`: small ones share pages of
// 2 MiB, larger ones have their own.
int64_t DeviceFootprint(int64_t bytes);

// The device memory of TransformerGpuWeights in 16 bits, with rotation tables of `max_positions`.
int64_t WeightFootprint(const ModelConfig& config, bool tied, int32_t max_positions);

// Keys and values of `block_size` tokens in all layers, in 16 bits.
int64_t KvBlockBytes(const ModelConfig& config, int32_t block_size);

// All in bytes unless said otherwise.
struct MemoryRequest {
  int64_t total = 0;               // of the device
  int64_t free = 0;                // before anything of ours but CUDA itself
  double gpu_memory_fraction = 0;  // of total, in (0, 1]: what may be in use, by whomever
  int64_t weights = 0;
  int64_t workspace = 0;    // of cuBLAS, attention, sampling
  int64_t activations = 0;  // of the largest step
  int64_t graphs = 0;       // set aside for what CUDA takes when they are captured
  int64_t kv_block = 0;     // one block of all layers
  int64_t min_blocks = 1;   // fewer cannot serve
  int64_t max_blocks = 0;   // more are of no use; 0: as many as fit
};

struct MemoryPlan {
  int64_t budget = 0;  // the fraction of total
  int64_t others = 0;  // used when asked: other processes and CUDA itself
  int64_t fixed = 0;   // weights, workspace, activations and graphs
  int32_t num_blocks = 0;
  int64_t kv_cache = 0;  // num_blocks * kv_block
  int64_t spare = 0;     // left of the budget
};

// KV blocks from what remains of the budget. InvalidArgument for a size or fraction out of range;
// ResourceExhausted with every number if fewer than min_blocks are left.
absl::StatusOr<MemoryPlan> PlanMemory(const MemoryRequest& request);

}  // namespace ferrite

// A model's weights on one GPU.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "cuda/device_buffer.h"
#include "cuda/gpu_weight.h"
#include "cuda/kernels/kernel_types.h"
#include "cuda/linear_weight.h"
#include "cuda/stream.h"
#include "cuda/weight_plan.h"
#include "cuda/weight_uploader.h"
#include "engine/model/model_config.h"
#include "engine/model/model_tensors.h"

namespace ferrite {

struct LayerWeights {
  DeviceBuffer<float> input_norm;  // [hidden]
  Linear qkv;                      // [q_size + 2 kv_size, hidden]: q, k and v stacked
  DeviceBuffer<float> q_norm;      // [head_dim]; empty if the model has none
  DeviceBuffer<float> k_norm;      // [head_dim]; empty if the model has none
  Linear o;                        // [hidden, q_size]
  DeviceBuffer<float> post_norm;   // [hidden]
  Linear gate_up;                  // [2 intermediate, hidden]: gate and up stacked
  Linear down;                     // [hidden, intermediate]
};

struct GpuWeightOptions {
  GpuType type = GpuType::kFp16;
  int32_t max_positions = 0;   // rows of the rotation tables
  int num_threads = 0;         // that read and convert; 0: as many as there are CPUs, at most 12
  LoadProgress progress = {};  // or empty
  WeightPlanOptions plan = {};
};

// Every family by its configuration: there is no subclass per model. Both ways to make one return
// only when everything has arrived on the device, so that no stream can read what is not there.
// Read-only from then on.
struct TransformerGpuWeights {
  explicit TransformerGpuWeights(GpuWeight embed) : embed_table(std::move(embed)) {}

  GpuWeight embed_table;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  DeviceBuffer<float> final_norm;  // [hidden]
  Linear lm_head;                  // [vocab, hidden]; shares embed_table's storage if tied
  DeviceBuffer<float> rope_cos;    // [max_positions, head_dim / 2]
  DeviceBuffer<float> rope_sin;    // [max_positions, head_dim / 2]
  int64_t num_parameters = 0;      // a tied lm_head counts once
  int64_t bytes = 0;               // of all of it on the device
  Int4Counts int4;                 // of the layers' quantised linears

  // The device memory that either of the next two takes from the device and keeps.
  static absl::StatusOr<int64_t> Footprint(const ModelConfig& config, const ModelTensors& tensors,
                                           bool tied, const GpuWeightOptions& options);

  // From a checkpoint, on `stream`'s device. Everything is allocated before anything is read.
  // Quantised linears are repacked on the way, one after the other through room for the largest.
  // ResourceExhausted as DeviceMemory, InvalidArgument as PlanLayer and WeightUploader, naming the
  // tensor.
  static absl::StatusOr<TransformerGpuWeights> Create(const ModelConfig& config,
                                                      const ModelTensors& tensors,
                                                      const GpuWeightOptions& options,
                                                      const Stream& stream);

  // Random values made on the device, for benchmarks: matrices and biases about normal with
  // standard deviation 0.02, norms the same about 1; with options.plan.random the layers' matrices
  // are in 4 bits, of the same deviation. The same for the same `seed`.
  static absl::StatusOr<TransformerGpuWeights> Random(const ModelConfig& config,
                                                      const GpuWeightOptions& options,
                                                      uint64_t seed, const Stream& stream);
};

using Qwen3Weights = TransformerGpuWeights;

}  // namespace ferrite

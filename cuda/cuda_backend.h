// The model on one GPU.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/decode_graphs.h"
#include "cuda/device_buffer.h"
#include "cuda/flight.h"
#include "cuda/gpu_forward.h"
#include "cuda/kernels/step.h"
#include "cuda/slot_adjustments.h"
#include "cuda/stream.h"
#include "cuda/transformer_gpu_weights.h"
#include "engine/backend.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"
#include "engine/model/model_tensors.h"
#include "engine/slot_table.h"

namespace ferrite {

struct CudaBackendOptions {
  int device = 0;
  // "fp16", "bf16", or "auto": bf16 if most of the checkpoint is bf16, else fp16.
  std::string compute_type = "auto";
  double gpu_memory_fraction = 0.9;  // of the device's memory, for everything of ours
  int32_t num_blocks = 0;            // of the KV cache; 0: as many as fit and can be used
  int32_t block_size = 16;
  int32_t max_sequences = 1;
  int32_t max_step_tokens = 1;
  int32_t max_sequence_length = 0;  // 0: the model's
  bool graphs = true;               // false: every step is enqueued kernel by kernel
  LoadProgress progress;            // or empty
  bool deterministic = false;       // as BackendInfo has it
  // false: quantised weights are dequantised for every product, as those are that no kernel of ours
  // takes.
  bool fused_int4 = true;
};

// Decode steps are graphs, one for each of a few padded batch sizes; other steps are enqueued
// kernel by kernel. Two steps may be outstanding: the sampled tokens feed the next step on the
// device. Steady state allocates nothing, and waits for the device only in Wait; Launch does so
// where it assigns more adjusted slots at once than can be staged (slot_adjustments.h).
//
// Create may run on another thread than Launch and Wait.
class CudaBackend : public Backend {
 public:
  // FailedPrecondition if there is no such GPU or its driver is too old; ResourceExhausted, with
  // the numbers, if it does not fit; InvalidArgument for an option out of range or a tensor that is
  // wrong. `checkpoint` is not needed afterwards.
  static absl::StatusOr<std::unique_ptr<CudaBackend>> Create(const ModelConfig& config,
                                                             const Checkpoint& checkpoint,
                                                             const CudaBackendOptions& options);
  // The same with random weights, for benchmarks.
  static absl::StatusOr<std::unique_ptr<CudaBackend>> CreateRandom(
      const ModelConfig& config, GpuType type, const CudaBackendOptions& options,
      const RandomInt4& int4 = {});

  ~CudaBackend() override;

  const BackendInfo& info() const override { return info_; }
  absl::Status Launch(const Batch& batch) override;
  absl::Status Wait(StepResult* result) override;

  struct Counters {
    int64_t graph_steps = 0;
    int64_t eager_steps = 0;
  };
  const Counters& counters() const { return counters_; }
  const TransformerGpuWeights& weights() const { return *weights_; }

  // The logits [num_samples, vocab_size] of the last step that was waited for, for tests: copied
  // from the device, so only while no step is outstanding.
  absl::StatusOr<std::vector<float>> ReadLogits() const;

 private:
  CudaBackend(const BackendInfo& info, Stream stream);

  using LoadWeights =
      std::function<absl::StatusOr<TransformerGpuWeights>(const GpuWeightOptions&, const Stream&)>;
  // `tensors` may have null pointers: its linears then are as weight_options has it.
  static absl::StatusOr<std::unique_ptr<CudaBackend>> Build(const ModelConfig& config,
                                                            const ModelTensors& tensors, bool tied,
                                                            GpuWeightOptions weight_options,
                                                            const CudaBackendOptions& options,
                                                            const LoadWeights& load);
  absl::Status AllocateSteps();
  absl::Status WarmUp();
  absl::Status UploadChanges(const Batch& batch, Flight* flight);
  absl::Status EnqueueStep(const Batch& batch, const Flight& flight);
  absl::Status EnqueueOutputs(const GpuStep& step, const Flight& flight) const;
  // Of what the step has made for the host.
  absl::Status EnqueueCopies(const Flight& flight) const;

  // In the order in which they must come to life; they die in the opposite one.
  BackendInfo info_;
  Stream stream_;
  SlotTable slots_;
  std::unique_ptr<TransformerGpuWeights> weights_;
  std::unique_ptr<GpuForward> forward_;
  DeviceBuffer<int32_t> inputs_;  // the words of one step
  DeviceBuffer<TableChange> table_changes_;
  DeviceBuffer<GpuSamplingParams> params_;
  DeviceBuffer<int32_t> param_slots_;
  std::unique_ptr<SlotAdjustments> adjustments_;
  std::vector<Flight> flights_;  // two
  DecodeGraphs graphs_;

  uint64_t launched_ = 0;
  uint64_t waited_ = 0;
  int32_t last_samples_ = 0;  // of the step launched last
  int32_t read_samples_ = 0;  // of the step waited for last
  Counters counters_;
};

}  // namespace ferrite

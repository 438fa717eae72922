// Matrix products by our own loops; see panel_kernels.h for how weights are packed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "cpu/aligned_buffer.h"
#include "cpu/matmul_engine.h"
#include "cpu/panel_kernels.h"
#include "cpu/weight_arena.h"

namespace ferrite {

// Takes x in fp32 whatever the weights' type. A row's result is the same in every bit whatever the
// other rows and the number of threads.
class PanelEngine : public MatmulEngine {
 public:
  PanelEngine(ComputeType weights, Isa isa, ThreadPool* pool);

  ComputeType input_type() const override { return ComputeType::kFp32; }
  absl::StatusOr<std::unique_ptr<CpuLinear>> Pack(std::span<const LinearTensors> parts) override;

 private:
  class PanelLinear;

  // Makes room for products with this many inputs.
  absl::Status Reserve(int32_t inputs);

  ComputeType type_;
  PanelKernels kernels_;
  ThreadPool* pool_;
  WeightArena arena_;
  int32_t max_inputs_ = 0;
  AlignedBuffer<float> tiles_;                // [kMaxTiledRows, max_inputs] x, tile by tile
  std::vector<AlignedBuffer<float>> panels_;  // [num_threads] of [max_inputs, kPanelColumns]
};

}  // namespace ferrite

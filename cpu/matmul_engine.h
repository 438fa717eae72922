// Matrix products with packed weights.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cpu/compute_type.h"
#include "cpu/thread_pool.h"
#include "engine/model/model_tensors.h"

namespace ferrite {

// y = x W^T + b for W [outputs, inputs], the rows of one or several tensors stacked. Used by one
// thread at a time; the work is spread over the engine's pool. Allocates nothing.
class CpuLinear {
 public:
  virtual ~CpuLinear() = default;

  int32_t inputs() const { return inputs_; }
  int32_t outputs() const { return outputs_; }

  enum class Output { kAssign, kAdd };

  // Sets or adds to y[rows, outputs] fp32 (dense) the product with x[rows, inputs] in the engine's
  // input type. x must have room for rows rounded up to a multiple of MatmulEngine::kRowPadding:
  // rows past the last may be read, and their results are dropped.
  virtual absl::Status Run(const void* x, int32_t rows, float* y, Output output) const = 0;

  // out[inputs] = row `row` of W, so that a tied embedding needs no second copy.
  virtual void ReadRow(int32_t row, std::span<float> out) const = 0;

 protected:
  CpuLinear(int32_t inputs, int32_t outputs) : inputs_(inputs), outputs_(outputs) {}

 private:
  int32_t inputs_;
  int32_t outputs_;
};

// What all Linears of a model share: kernels and scratch. Must outlive them.
class MatmulEngine {
 public:
  static constexpr int32_t kRowPadding = 64;

  // oneDNN for bf16 where the CPU has instructions for that, unless a row's result must be the same
  // bits whatever the other rows (`deterministic`); otherwise our own loops over panels, which
  // widen bf16 weights to fp32 on the way into registers.
  static absl::StatusOr<std::unique_ptr<MatmulEngine>> Create(ComputeType weights,
                                                              bool deterministic, ThreadPool* pool);

  virtual ~MatmulEngine() = default;

  // What x holds.
  virtual ComputeType input_type() const = 0;

  // Packs `parts`, each with inputs floating-point columns. ResourceExhausted if memory is short.
  virtual absl::StatusOr<std::unique_ptr<CpuLinear>> Pack(std::span<const LinearTensors> parts) = 0;
};

}  // namespace ferrite

// What scratch products need.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <set>

#include "absl/status/status.h"
#include "cuda/gpu_quant_weight.h"
#include "cuda/gpu_weight.h"
#include "cuda/kernels/kernel_types.h"
#include "cuda/kernels/stream_matmul.h"
#include "cuda/linear_weight.h"
#include "cuda/marlin_weight.h"

namespace ferrite {

// The largest of everything that any product of up to `max_rows` rows with the added projections
// needs on the current device.
class ScratchSizer {
 public:
  ScratchSizer(GpuType type, int32_t max_rows) : type_(type), max_rows_(max_rows) {}

  absl::Status Add(const Linear& linear);

  const StreamMatmulScratch& streamed() const { return streamed_; }
  int64_t dequantized() const { return dequantized_; }  // elements
  bool any_marlin() const { return marlin_outputs_ > 0; }
  int64_t marlin_inputs() const { return marlin_inputs_; }
  int64_t marlin_outputs() const { return marlin_outputs_; }

 private:
  using Size = std::function<cudaError_t(const StreamMatmulArguments&, StreamMatmulScratch*)>;

  absl::Status Add(const GpuWeight& weight);
  absl::Status Add(const GpuQuantWeight& weight);
  absl::Status Add(const MarlinWeight& weight);
  void AddDequantized(int64_t inputs, int64_t outputs);
  // Layers are mostly alike: each shape is asked about once. `kind` tells apart what else counts.
  template <typename Weight>
  absl::Status AddStreamed(const Weight& weight, int64_t kind, const Size& size);
  absl::Status AddProduct(int64_t inputs, int64_t outputs, int32_t rows, bool norm,
                          StreamMatmulArguments::Epilogue epilogue, const Size& size);

  const GpuType type_;
  const int32_t max_rows_;
  std::set<std::array<int64_t, 3>> seen_;
  StreamMatmulScratch streamed_;
  int64_t dequantized_ = 0;
  int64_t marlin_inputs_ = 0;
  int64_t marlin_outputs_ = 0;
};

}  // namespace ferrite

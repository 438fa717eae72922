// Products of activations with projections, each by the way that suits its rows and its weights.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/device_buffer.h"
#include "cuda/fixed_matmul.h"
#include "cuda/gpu_matmul.h"
#include "cuda/kernels/kernel_types.h"
#include "cuda/kernels/stream_matmul.h"
#include "cuda/linear_weight.h"
#include "cuda/stream.h"
#include "cuda/transformer_gpu_weights.h"
#include "engine/model/model_config.h"

namespace ferrite {

// y = epilogue(x W^T + b), all in device memory.
struct Product {
  using Epilogue = StreamMatmulArguments::Epilogue;

  int32_t rows = 0;
  // How many rows x and y have room for; 0: `rows`. Those past `rows` may be read and written.
  int32_t room = 0;
  // One of the two. With `residual`, x is its RMS norm; only where Products::FusesNorm says so.
  const void* x = nullptr;             // [rows, inputs] of the weights' type
  const float* residual = nullptr;     // [rows, inputs] fp32
  const float* norm_weight = nullptr;  // [inputs] fp32
  float epsilon = 0;

  // kSiluMul only where Products::FusesSiluMul says so.
  Epilogue epilogue = Epilogue::kStore;
  void* y = nullptr;  // as the epilogue has it
};

// Works on one stream, on which its products share their scratch. Everything it needs is allocated
// up front, so that it can be captured.
class Products {
 public:
  // For the projections of `weights`, with up to `max_rows` rows. `weights` and `stream` outlive
  // it. `deterministic`: a row's result has the same bits whatever the other rows; each product
  // then needs a Prepare.
  static absl::StatusOr<Products> Create(const TransformerGpuWeights& weights, int32_t max_rows,
                                         bool deterministic, const Stream& stream);

  // For planning memory: what Create allocates, generously, since it depends on the device.
  // `quantized`: whether any projection is.
  static int64_t WorkspaceBytes(const ModelConfig& config, bool quantized, int32_t max_rows,
                                int32_t num_multiprocessors);

  bool FusesNorm(int32_t rows, const Linear& linear) const;
  bool FusesSiluMul(int32_t rows, const Linear& linear) const;

  absl::Status Run(const Product& product, const Linear& linear) const;

  // Numbers of rows, rising up to `max_rows`: a product that is not deterministic and has room for
  // more rows than it has is computed as one of the next of them. cuBLAS takes its time,
  // milliseconds, when it first sees a number of rows: these few can be shown to it beforehand.
  static std::vector<int32_t> RowSizes(int32_t max_rows);

  // Of deterministic products, before the first Run: finds out how those of `linear` with this
  // epilogue and up to `rows` rows are to be computed. As FixedMatmul::Prepare.
  absl::Status Prepare(int32_t rows, Product::Epilogue epilogue, const Linear& linear);

 private:
  // What of a product one part of its projection makes.
  struct Part;

  Products(GpuType type, const Stream& stream, GpuMatmul matmul)
      : type_(type), stream_(stream.get()), matmul_(std::move(matmul)) {}

  absl::Status Allocate(const TransformerGpuWeights& weights, int32_t max_rows, int device);

  absl::Status RunPart(const Part& part, const GpuWeight& weight) const;
  absl::Status RunPart(const Part& part, const GpuQuantWeight& weight) const;
  absl::Status RunPart(const Part& part, const MarlinWeight& weight) const;
  static bool CanInt4Matmul(const Part& part);
  absl::Status RunInt4Matmul(const Part& part, const MarlinWeight& weight) const;
  // `dequantize(first, count, out)` enqueues outputs [first, first + count) in 16 bits.
  template <typename Dequantize>
  absl::Status RunDequantized(const Part& part, int64_t inputs, int64_t outputs,
                              const Dequantize& dequantize) const;
  absl::Status RunCublas(const Part& part, const void* weight, int64_t inputs,
                         int64_t outputs) const;
  GpuMatmulArguments CublasArguments(const Part& part, const void* weight, int64_t inputs,
                                     int64_t outputs) const;
  StreamMatmulArguments StreamArguments(const Part& part, int64_t inputs, int64_t outputs) const;

  GpuType type_;
  cudaStream_t stream_;
  GpuMatmul matmul_;
  std::optional<FixedMatmul> fixed_;  // of deterministic products
  DeviceBuffer<float> partials_;      // of the streaming kernels
  DeviceBuffer<int32_t> counters_;    // of the streaming kernels
  DeviceMemory int4_workspace_;       // of Int4Matmul
  DeviceBuffer<uint16_t> dequantized_;
};

}  // namespace ferrite

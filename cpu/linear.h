// Matrix products with packed weights, by oneDNN.
//
// oneDNN runs single-threaded inside our own thread pool: a weight is cut into column parts, and
// (part, rows) pairs are the work items. So there is one set of threads (an OpenMP team would spin
// against ours), a tiny product pays for no threading, and a row's result cannot depend on how many
// rows or threads there are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <dnnl.hpp>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cpu/aligned_buffer.h"
#include "cpu/compute_type.h"
#include "cpu/dnnl_compat.h"
#include "cpu/thread_pool.h"
#include "engine/model/checkpoint.h"

namespace ferrite {

class MatmulKernel;

// What all Linears of a model share: the engine, the primitives by shape, each thread's scratch.
// Must outlive them.
class MatmulRuntime {
 public:
  // Rows one primitive handles; longer inputs are cut into pieces of this many.
  static constexpr int32_t kMaxRows = 64;

  // FailedPrecondition if this CPU cannot multiply in `type`.
  static absl::StatusOr<std::unique_ptr<MatmulRuntime>> Create(ComputeType type, ThreadPool* pool);
  ~MatmulRuntime();

  ComputeType type() const { return type_; }
  ThreadPool& pool() { return *pool_; }
  const dnnl::engine& engine() const { return engine_; }
  size_t num_threads() const { return streams_.size(); }
  const dnnl::stream& stream(int32_t thread) const { return streams_[thread]; }

  // The kernel for x[*, inputs] times w[inputs, columns], created when first asked for.
  absl::StatusOr<const MatmulKernel*> GetKernel(int32_t inputs, int32_t columns);

  // Output scratch of one thread: [kMaxRows, columns] for the widest kernel.
  float* scratch(int32_t thread) { return scratch_[thread].data(); }

 private:
  MatmulRuntime(ComputeType type, ThreadPool* pool);

  ComputeType type_;
  ThreadPool* pool_;
  dnnl::engine engine_;
  std::vector<dnnl::stream> streams_;          // [num_threads]
  std::vector<AlignedBuffer<float>> scratch_;  // [num_threads]
  // Bounded by the model: at most two widths for each of its few weight shapes.
  std::map<std::pair<int32_t, int32_t>, std::unique_ptr<MatmulKernel>> kernels_;
};

// y = x W^T for W [outputs, inputs], the rows of one or several tensors stacked.
class Linear {
 public:
  // Packs `weights`, each [*, inputs] floating point, read row by row in their order.
  static absl::StatusOr<Linear> Create(MatmulRuntime* runtime,
                                       std::span<const TensorView* const> weights);

  int32_t inputs() const { return inputs_; }
  int32_t outputs() const { return outputs_; }

  enum class Output { kAssign, kAdd };

  // Sets or adds to y[rows, outputs] fp32 (dense) the product with x[rows, inputs] in the compute
  // type. x must have room for rows rounded up to a multiple of kMaxRows: rows past the last are
  // read, and their results dropped.
  absl::Status Run(const void* x, int32_t rows, float* y, Output output) const;

  // out[inputs] = row `row` of W, so that a tied embedding needs no second copy.
  void ReadRow(int32_t row, std::span<float> out) const;

 private:
  struct Part {
    const MatmulKernel* kernel = nullptr;
    dnnl::memory weights;
    BlockedLayout layout;
  };

  dnnl_status_t RunPiece(const Part& part, int32_t first_column, const std::byte* x, int32_t rows,
                         float* y, Output output, int32_t thread) const;

  MatmulRuntime* runtime_ = nullptr;
  int32_t inputs_ = 0;
  int32_t outputs_ = 0;
  int32_t part_columns_ = 0;  // of every part but the last
  std::vector<Part> parts_;
};

}  // namespace ferrite

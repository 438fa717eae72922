// Matrix products by oneDNN, for CPUs that multiply bf16 themselves.
//
// oneDNN runs single-threaded inside our own thread pool: a weight is cut into column parts, and
// (part, rows) pairs are the work items. So there is one set of threads (an OpenMP team would spin
// against ours), and a tiny product pays for no threading.
#pragma once

#include <cstddef>
#include <cstdint>
#include <dnnl.hpp>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "cpu/aligned_buffer.h"
#include "cpu/matmul_engine.h"

namespace ferrite {

class DnnlKernel;

class DnnlEngine : public MatmulEngine {
 public:
  // Weights and x are `type`. FailedPrecondition if this CPU cannot multiply in it.
  static absl::StatusOr<std::unique_ptr<DnnlEngine>> Create(ComputeType type, ThreadPool* pool);
  ~DnnlEngine() override;

  ComputeType input_type() const override { return type_; }
  absl::StatusOr<std::unique_ptr<CpuLinear>> Pack(std::span<const LinearTensors> parts) override;

  const dnnl::engine& handle() const { return handle_; }
  size_t num_threads() const { return streams_.size(); }

  // The kernel for x[*, inputs] times w[inputs, columns], created when first asked for.
  absl::StatusOr<const DnnlKernel*> GetKernel(int32_t inputs, int32_t columns);

 private:
  class DnnlLinear;

  DnnlEngine(ComputeType type, ThreadPool* pool);

  ComputeType type_;
  ThreadPool* pool_;
  dnnl::engine handle_;
  std::vector<dnnl::stream> streams_;          // [num_threads]
  std::vector<AlignedBuffer<float>> scratch_;  // [num_threads] of [kRowPadding, widest kernel]
  // Bounded by the model: at most two widths for each of its few weight shapes.
  std::map<std::pair<int32_t, int32_t>, std::unique_ptr<DnnlKernel>> kernels_;
};

}  // namespace ferrite

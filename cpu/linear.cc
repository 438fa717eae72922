#include "cpu/linear.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "cpu/matmul_kernel.h"
#include "cpu/simd_ops.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// oneDNN packs columns in blocks of up to this many.
constexpr int32_t kColumnBlock = 64;
constexpr int32_t kMaxPartColumns = 1024;
// Parts a thread may expect of one weight, so that a delayed thread leaves some to the others.
constexpr int32_t kPartsPerThread = 2;
// Weights below this many elements stay whole, and products below this many multiplications run on
// the calling thread: waking another would take longer.
constexpr int64_t kMinPartElements = 1 << 15;
constexpr int64_t kMinParallelMultiplications = 1 << 18;

int32_t ChoosePartColumns(int32_t inputs, int32_t outputs, int32_t num_threads) {
  const int64_t wanted = num_threads == 1 ? 1 : int64_t{num_threads} * kPartsPerThread;
  const int64_t least = kMinPartElements / inputs;
  const int64_t columns =
      std::clamp<int64_t>(std::max((outputs + wanted - 1) / wanted, least), 1, kMaxPartColumns);
  return static_cast<int32_t>((columns + kColumnBlock - 1) / kColumnBlock * kColumnBlock);
}

// Reads rows of several stacked tensors as fp32.
class StackedRows {
 public:
  explicit StackedRows(std::span<const TensorView* const> tensors) : tensors_(tensors) {}

  void Read(int64_t first, int64_t count, float* out) const {
    for (const TensorView* tensor : tensors_) {
      const int64_t rows = tensor->shape[0];
      const int64_t taken = std::clamp<int64_t>(rows - first, 0, count);
      if (taken > 0) {
        const int64_t width = tensor->shape[1];
        ConvertToFloat(*tensor, first * width,
                       std::span<float>(out, static_cast<size_t>(taken * width)));
        out += taken * width;
        count -= taken;
        first = 0;
      } else {
        first -= rows;
      }
      if (count == 0) {
        return;
      }
    }
  }

 private:
  std::span<const TensorView* const> tensors_;
};

}  // namespace

MatmulRuntime::MatmulRuntime(ComputeType type, ThreadPool* pool) : type_(type), pool_(pool) {}
MatmulRuntime::~MatmulRuntime() = default;

absl::StatusOr<std::unique_ptr<MatmulRuntime>> MatmulRuntime::Create(ComputeType type,
                                                                     ThreadPool* pool) {
  std::unique_ptr<MatmulRuntime> runtime(new MatmulRuntime(type, pool));
  omp_set_num_threads(1);
  try {
    runtime->engine_ = dnnl::engine(dnnl::engine::kind::cpu, 0);
    for (int32_t thread = 0; thread < pool->num_threads(); ++thread) {
      runtime->streams_.emplace_back(runtime->engine_);
    }
  } catch (const dnnl::error& error) {
    return absl::InternalError(absl::StrCat("oneDNN: ", error.message));
  }
  runtime->scratch_.resize(pool->num_threads());
  // Fails here, with its reason, if the CPU cannot do `type` at all.
  RETURN_IF_ERROR(MatmulKernel::Create(*runtime, kColumnBlock, kColumnBlock).status());
  return runtime;
}

absl::StatusOr<const MatmulKernel*> MatmulRuntime::GetKernel(int32_t inputs, int32_t columns) {
  std::unique_ptr<MatmulKernel>& kernel = kernels_[{inputs, columns}];
  if (kernel == nullptr) {
    ASSIGN_OR_RETURN(kernel, MatmulKernel::Create(*this, inputs, columns));
    const int64_t wanted = int64_t{kMaxRows} * columns;
    for (AlignedBuffer<float>& scratch : scratch_) {
      if (scratch.size() < wanted) {
        ASSIGN_OR_RETURN(scratch, AlignedBuffer<float>::Create(wanted, "matmul scratch"));
      }
    }
  }
  return kernel.get();
}

absl::StatusOr<Linear> Linear::Create(MatmulRuntime* runtime,
                                      std::span<const TensorView* const> weights) {
  omp_set_num_threads(1);
  Linear linear;
  linear.runtime_ = runtime;
  linear.inputs_ = static_cast<int32_t>(weights[0]->shape[1]);
  for (const TensorView* tensor : weights) {
    linear.outputs_ += static_cast<int32_t>(tensor->shape[0]);
  }
  linear.part_columns_ =
      ChoosePartColumns(linear.inputs_, linear.outputs_, runtime->pool().num_threads());
  const StackedRows rows(weights);
  ASSIGN_OR_RETURN(AlignedBuffer<float> plain,
                   AlignedBuffer<float>::Create(int64_t{linear.part_columns_} * linear.inputs_,
                                                "a weight being packed"));
  for (int32_t first = 0; first < linear.outputs_; first += linear.part_columns_) {
    const int32_t columns = std::min(linear.part_columns_, linear.outputs_ - first);
    rows.Read(first, columns, plain.data());
    Part part;
    ASSIGN_OR_RETURN(part.kernel, runtime->GetKernel(linear.inputs_, columns));
    try {
      dnnl::memory source(
          {{linear.inputs_, columns}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::ba},
          runtime->engine(), plain.data());
      part.weights = dnnl::memory(part.kernel->weights_desc(), runtime->engine());
      dnnl::stream stream = runtime->stream(0);
      dnnl::reorder(source, part.weights).execute(stream, source, part.weights);
      stream.wait();
      part.layout = DescribeLayout(part.kernel->weights_desc());
    } catch (const dnnl::error& error) {
      const std::string message =
          absl::StrCat("oneDNN cannot pack ", std::string(weights[0]->name), ": ", error.message);
      return error.status == dnnl_out_of_memory ? absl::ResourceExhaustedError(message)
                                                : absl::InternalError(message);
    }
    linear.parts_.push_back(std::move(part));
  }
  return linear;
}

absl::Status Linear::Run(const void* x, int32_t rows, float* y, Output output) const {
  const int64_t row_bytes = inputs_ * static_cast<int64_t>(ComputeTypeSize(runtime_->type()));
  const int64_t pieces = (rows + MatmulRuntime::kMaxRows - 1) / MatmulRuntime::kMaxRows;
  const int64_t items = static_cast<int64_t>(parts_.size()) * pieces;
  const bool tiny = int64_t{rows} * inputs_ * outputs_ < kMinParallelMultiplications;
  std::atomic<dnnl_status_t> failure{dnnl_success};
  // The pieces of one part follow each other, so that its weights are still in the thread's cache.
  runtime_->pool().ParallelFor(
      items, tiny ? items : 1, [&](int64_t begin, int64_t end, int32_t thread) {
        omp_set_num_threads(1);  // a setting of each thread
        for (int64_t item = begin; item < end; ++item) {
          const auto part = static_cast<size_t>(item / pieces);
          const int32_t first = static_cast<int32_t>(item % pieces) * MatmulRuntime::kMaxRows;
          const dnnl_status_t status =
              RunPiece(parts_[part], static_cast<int32_t>(part) * part_columns_,
                       static_cast<const std::byte*>(x) + first * row_bytes,
                       std::min(rows - first, MatmulRuntime::kMaxRows),
                       y + int64_t{first} * outputs_, output, thread);
          if (status != dnnl_success) {
            failure.store(status, std::memory_order_relaxed);
          }
        }
      });
  if (failure.load() != dnnl_success) {
    return absl::InternalError(absl::StrCat("oneDNN matrix product of ", rows, " x ", inputs_,
                                            " x ", outputs_, " failed with status ",
                                            static_cast<int>(failure.load())));
  }
  return absl::OkStatus();
}

// The fast primitives write dense rows only, so a part's columns go through scratch.
dnnl_status_t Linear::RunPiece(const Part& part, int32_t first_column, const std::byte* x,
                               int32_t rows, float* y, Output output, int32_t thread) const {
  float* scratch = runtime_->scratch(thread);
  const dnnl_status_t status =
      part.kernel->Run(part.weights, runtime_->stream(thread), thread, x, rows, scratch);
  if (status != dnnl_success) {
    return status;
  }
  const int32_t columns = part.kernel->columns();
  for (int32_t row = 0; row < rows; ++row) {
    const float* from = scratch + int64_t{row} * columns;
    float* to = y + int64_t{row} * outputs_ + first_column;
    if (output == Output::kAdd) {
      AddTo(from, columns, to);
    } else {
      std::memcpy(to, from, columns * sizeof(float));
    }
  }
  return dnnl_success;
}

void Linear::ReadRow(int32_t row, std::span<float> out) const {
  const Part& part = parts_[row / part_columns_];
  const int32_t column = row % part_columns_;
  const void* data = part.weights.get_data_handle();
  const bool bf16 = runtime_->type() == ComputeType::kBf16;
  for (int32_t input = 0; input < inputs_; ++input) {
    const int64_t offset = part.layout.Offset(input, column);
    out[input] = bf16 ? Bf16ToFloat(static_cast<const uint16_t*>(data)[offset])
                      : static_cast<const float*>(data)[offset];
  }
}

}  // namespace ferrite

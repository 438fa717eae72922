#include "cpu/dnnl_engine.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "cpu/dnnl_compat.h"
#include "cpu/dnnl_kernel.h"
#include "cpu/simd_ops.h"
#include "cpu/stacked_rows.h"
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
constexpr int64_t kMinSharedMultiplications = 1 << 18;

int32_t ChoosePartColumns(int32_t inputs, int32_t outputs, int32_t num_threads) {
  const int64_t wanted = num_threads == 1 ? 1 : int64_t{num_threads} * kPartsPerThread;
  const int64_t least = kMinPartElements / inputs;
  const int64_t columns =
      std::clamp<int64_t>(std::max((outputs + wanted - 1) / wanted, least), 1, kMaxPartColumns);
  return static_cast<int32_t>((columns + kColumnBlock - 1) / kColumnBlock * kColumnBlock);
}

}  // namespace

class DnnlEngine::DnnlLinear : public CpuLinear {
 public:
  struct Part {
    const DnnlKernel* kernel = nullptr;
    dnnl::memory weights;
    BlockedLayout layout;
  };

  DnnlLinear(DnnlEngine* engine, int32_t inputs, int32_t outputs, int32_t part_columns,
             std::vector<Part> parts, std::vector<float> bias)
      : CpuLinear(inputs, outputs),
        engine_(engine),
        part_columns_(part_columns),
        parts_(std::move(parts)),
        bias_(std::move(bias)) {}

  absl::Status Run(const void* x, int32_t rows, float* y, Output output) const override;
  void ReadRow(int32_t row, std::span<float> out) const override;

 private:
  dnnl_status_t RunPiece(size_t part, const std::byte* x, int32_t rows, float* y, Output output,
                         int32_t thread) const;

  DnnlEngine* engine_;
  int32_t part_columns_;  // of every part but the last
  std::vector<Part> parts_;
  std::vector<float> bias_;  // [outputs], or empty
};

DnnlEngine::DnnlEngine(ComputeType type, ThreadPool* pool) : type_(type), pool_(pool) {}
DnnlEngine::~DnnlEngine() = default;

absl::StatusOr<std::unique_ptr<DnnlEngine>> DnnlEngine::Create(ComputeType type, ThreadPool* pool) {
  std::unique_ptr<DnnlEngine> engine(new DnnlEngine(type, pool));
  omp_set_num_threads(1);
  try {
    engine->handle_ = dnnl::engine(dnnl::engine::kind::cpu, 0);
    for (int32_t thread = 0; thread < pool->num_threads(); ++thread) {
      engine->streams_.emplace_back(engine->handle_);
    }
  } catch (const dnnl::error& error) {
    return absl::InternalError(absl::StrCat("oneDNN: ", error.message));
  }
  engine->scratch_.resize(pool->num_threads());
  // Fails here, with its reason, if the CPU cannot do `type` at all.
  RETURN_IF_ERROR(DnnlKernel::Create(*engine, kColumnBlock, kColumnBlock).status());
  return engine;
}

absl::StatusOr<const DnnlKernel*> DnnlEngine::GetKernel(int32_t inputs, int32_t columns) {
  std::unique_ptr<DnnlKernel>& kernel = kernels_[{inputs, columns}];
  if (kernel == nullptr) {
    ASSIGN_OR_RETURN(kernel, DnnlKernel::Create(*this, inputs, columns));
    const int64_t wanted = int64_t{kRowPadding} * columns;
    for (AlignedBuffer<float>& scratch : scratch_) {
      if (scratch.size() < wanted) {
        ASSIGN_OR_RETURN(scratch, AlignedBuffer<float>::Create(wanted, "matmul scratch"));
      }
    }
  }
  return kernel.get();
}

absl::StatusOr<std::unique_ptr<CpuLinear>> DnnlEngine::Pack(std::span<const LinearTensors> parts) {
  omp_set_num_threads(1);
  const StackedRows rows(parts);
  const int32_t inputs = rows.inputs();
  const int32_t outputs = rows.outputs();
  const int32_t part_columns = ChoosePartColumns(inputs, outputs, pool_->num_threads());
  ASSIGN_OR_RETURN(
      AlignedBuffer<float> plain,
      AlignedBuffer<float>::Create(int64_t{part_columns} * inputs, "a weight being packed"));
  std::vector<DnnlLinear::Part> packed;
  for (int32_t first = 0; first < outputs; first += part_columns) {
    const int32_t columns = std::min(part_columns, outputs - first);
    rows.ReadWeights(first, columns, plain.data());
    DnnlLinear::Part part;
    ASSIGN_OR_RETURN(part.kernel, GetKernel(inputs, columns));
    try {
      dnnl::memory source(
          {{inputs, columns}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::ba}, handle_,
          plain.data());
      part.weights = dnnl::memory(part.kernel->weights_desc(), handle_);
      dnnl::reorder(source, part.weights).execute(streams_[0], source, part.weights);
      streams_[0].wait();
      part.layout = DescribeLayout(part.kernel->weights_desc());
    } catch (const dnnl::error& error) {
      const std::string message = absl::StrCat("oneDNN cannot pack a matrix of ", rows.outputs(),
                                               " by ", rows.inputs(), ": ", error.message);
      return error.status == dnnl_out_of_memory ? absl::ResourceExhaustedError(message)
                                                : absl::InternalError(message);
    }
    packed.push_back(std::move(part));
  }
  std::vector<float> bias;
  if (rows.has_bias()) {
    bias.resize(outputs);
    rows.ReadBiases(bias.data());
  }
  return std::make_unique<DnnlLinear>(this, inputs, outputs, part_columns, std::move(packed),
                                      std::move(bias));
}

absl::Status DnnlEngine::DnnlLinear::Run(const void* x, int32_t rows, float* y,
                                         Output output) const {
  const int64_t row_bytes = inputs() * static_cast<int64_t>(ComputeTypeSize(engine_->type_));
  const int64_t pieces = (rows + kRowPadding - 1) / kRowPadding;
  const int64_t items = static_cast<int64_t>(parts_.size()) * pieces;
  const bool tiny = int64_t{rows} * inputs() * outputs() < kMinSharedMultiplications;
  std::atomic<dnnl_status_t> failure{dnnl_success};
  // The pieces of one part follow each other, so that its weights are still in the thread's cache.
  engine_->pool_->ParallelFor(
      items, tiny ? items : 1, [&](int64_t begin, int64_t end, int32_t thread) {
        omp_set_num_threads(1);  // a setting of each thread
        for (int64_t item = begin; item < end; ++item) {
          const int32_t first = static_cast<int32_t>(item % pieces) * kRowPadding;
          const dnnl_status_t status = RunPiece(
              static_cast<size_t>(item / pieces),
              static_cast<const std::byte*>(x) + first * row_bytes,
              std::min(rows - first, kRowPadding), y + int64_t{first} * outputs(), output, thread);
          if (status != dnnl_success) {
            failure.store(status, std::memory_order_relaxed);
          }
        }
      });
  if (failure.load() != dnnl_success) {
    return absl::InternalError(absl::StrCat("oneDNN matrix product of ", rows, " x ", inputs(),
                                            " x ", outputs(), " failed with status ",
                                            static_cast<int>(failure.load())));
  }
  return absl::OkStatus();
}

// The fast primitives write dense rows only, so a part's columns go through scratch.
dnnl_status_t DnnlEngine::DnnlLinear::RunPiece(size_t index, const std::byte* x, int32_t rows,
                                               float* y, Output output, int32_t thread) const {
  const Part& part = parts_[index];
  const int64_t first_column = static_cast<int64_t>(index) * part_columns_;
  float* scratch = engine_->scratch_[thread].data();
  const dnnl_status_t status =
      part.kernel->Run(part.weights, engine_->streams_[thread], thread, x, rows, scratch);
  if (status != dnnl_success) {
    return status;
  }
  const int32_t columns = part.kernel->columns();
  for (int32_t row = 0; row < rows; ++row) {
    float* from = scratch + int64_t{row} * columns;
    float* to = y + int64_t{row} * outputs() + first_column;
    if (!bias_.empty()) {
      AddTo(bias_.data() + first_column, columns, from);
    }
    if (output == Output::kAdd) {
      AddTo(from, columns, to);
    } else {
      std::memcpy(to, from, columns * sizeof(float));
    }
  }
  return dnnl_success;
}

void DnnlEngine::DnnlLinear::ReadRow(int32_t row, std::span<float> out) const {
  const Part& part = parts_[row / part_columns_];
  const int32_t column = row % part_columns_;
  const void* data = part.weights.get_data_handle();
  for (int32_t input = 0; input < inputs(); ++input) {
    const int64_t offset = part.layout.Offset(input, column);
    out[input] = engine_->type_ == ComputeType::kBf16
                     ? Bf16ToFloat(static_cast<const uint16_t*>(data)[offset])
                     : static_cast<const float*>(data)[offset];
  }
}

}  // namespace ferrite

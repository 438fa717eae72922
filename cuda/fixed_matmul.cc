#include "cuda/fixed_matmul.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cuda/cuda_status.h"
#include "cuda/device_buffer.h"
#include "cuda/kernels/compare.h"
#include "cuda/kernels/fill_random.h"
#include "cuda/kernels/plain_matmul.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// More rows than that are taken in pieces of so many.
constexpr int32_t kMostRows = 4096;
constexpr int kMostCandidates = 32;
// cuBLASLt uses tensor cores where sizes are multiples of so many, and what it does elsewhere
// depends on the number of rows.
constexpr int32_t kTensorCoreSizes = 8;
// How many algorithms may set the bits that the others are to give.
constexpr size_t kMostReferences = 4;

// Of addresses that are multiples of `bytes`; more than this is of no use.
int32_t AlignmentOf(uint64_t bytes) {
  constexpr uint64_t kMost = 256;
  return 1 << std::countr_zero(bytes | kMost);
}

int32_t ElementBytes(bool fp32) { return fp32 ? 4 : static_cast<int32_t>(kGpuTypeSize); }

// cuBLASLt counts by columns: y^T [outputs, rows] = W [outputs, inputs] x^T. On the stack, since
// running allocates nothing.
struct Description {
  Description(GpuType type, const FixedMatmul::Shape& shape, int32_t rows) {
    const cudaDataType_t in = type == GpuType::kFp16 ? CUDA_R_16F : CUDA_R_16BF;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const auto inputs = static_cast<uint64_t>(shape.inputs);
    const auto outputs = static_cast<uint64_t>(shape.outputs);
    ok =
        cublasLtMatmulDescInit(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
        cublasLtMatmulDescSetAttribute(&product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                       sizeof(transposed)) == CUBLAS_STATUS_SUCCESS &&
        cublasLtMatrixLayoutInit(&weight, in, inputs, outputs, shape.inputs) ==
            CUBLAS_STATUS_SUCCESS &&
        cublasLtMatrixLayoutInit(&x, in, inputs, static_cast<uint64_t>(rows), shape.inputs) ==
            CUBLAS_STATUS_SUCCESS &&
        cublasLtMatrixLayoutInit(&y, shape.fp32 ? CUDA_R_32F : in, outputs,
                                 static_cast<uint64_t>(rows),
                                 shape.y_stride) == CUBLAS_STATUS_SUCCESS;
  }

  cublasLtMatmulDescOpaque_t product;
  cublasLtMatrixLayoutOpaque_t weight;
  cublasLtMatrixLayoutOpaque_t x;
  cublasLtMatrixLayoutOpaque_t y;
  bool ok = false;
};

}  // namespace

// Random rows, what the algorithm that sets the bits makes of them, and whether others do the same.
class FixedMatmul::Trial {
 public:
  Trial(const FixedMatmul& matmul, const GpuMatmulArguments& arguments)
      : matmul_(matmul), arguments_(arguments) {}

  absl::Status Allocate() {
    constexpr uint64_t kSeed = 0x5eed;
    const Stream& stream = *matmul_.stream_;
    const int64_t rows = arguments_.rows;
    y_bytes_ = rows * arguments_.y_stride * ElementBytes(arguments_.fp32);
    ASSIGN_OR_RETURN(x_, DeviceBuffer<uint16_t>::Create(stream.device(), rows * arguments_.inputs,
                                                        "trial products"));
    for (DeviceMemory* memory : {&start_, &expected_, &y_}) {
      // Aligned as y is, and no better.
      ASSIGN_OR_RETURN(*memory, DeviceMemory::Create(stream.device(), y_bytes_ + kMostAlignment,
                                                     "trial products"));
    }
    ASSIGN_OR_RETURN(differences_,
                     DeviceBuffer<uint32_t>::Create(stream.device(), 1, "trial products"));
    FERRITE_RETURN_IF_CUDA_ERROR(
        FillRandom(matmul_.type_, x_.data(), x_.size(), 0.0f, 1.0f, kSeed, stream.get()));
    if (arguments_.add) {
      return CudaStatus(FillRandom(static_cast<float*>(At(start_)), y_bytes_ / 4, 0.0f, 1.0f,
                                   kSeed + 1, stream.get()),
                        "FillRandom");
    }
    return CudaStatus(cudaMemsetAsync(At(start_), 0, y_bytes_, stream.get()), "memset");
  }

  // What `algorithm` makes of all rows is what is expected. False if it cannot be run.
  absl::StatusOr<bool> Expect(const cublasLtMatmulAlgo_t& algorithm) {
    return Multiply(algorithm, 0, arguments_.rows, expected_);
  }

  // Whether `algorithm` gives `rows` rows the bits expected of them, the first as well as the last.
  absl::StatusOr<bool> Agrees(const cublasLtMatmulAlgo_t& algorithm, int32_t rows) {
    for (const int32_t first : {0, arguments_.rows - rows}) {
      ASSIGN_OR_RETURN(const bool ran, Multiply(algorithm, first, rows, y_));
      if (!ran) {
        return false;
      }
      const int64_t begin = first * RowBytes();
      FERRITE_RETURN_IF_CUDA_ERROR(CountDifferences(
          static_cast<char*>(At(y_)) + begin, static_cast<char*>(At(expected_)) + begin,
          rows * RowBytes(), differences_.data(), matmul_.stream_->get()));
      uint32_t differences = 0;
      FERRITE_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(&differences, differences_.data(),
                                                   sizeof(differences), cudaMemcpyDeviceToHost,
                                                   matmul_.stream_->get()));
      RETURN_IF_ERROR(matmul_.stream_->Synchronize());
      if (differences != 0) {
        return false;
      }
    }
    return true;
  }

 private:
  static constexpr int64_t kMostAlignment = 256;

  int64_t RowBytes() const { return int64_t{arguments_.y_stride} * ElementBytes(arguments_.fp32); }
  void* At(const DeviceMemory& memory) const {
    const int32_t alignment = ShapeOf(arguments_).alignment;
    return static_cast<char*>(memory.data()) + (alignment < kMostAlignment ? alignment : 0);
  }

  absl::StatusOr<bool> Multiply(const cublasLtMatmulAlgo_t& algorithm, int32_t first, int32_t rows,
                                const DeviceMemory& to) {
    const int64_t begin = first * RowBytes();
    FERRITE_RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(static_cast<char*>(At(to)) + begin, static_cast<char*>(At(start_)) + begin,
                        rows * RowBytes(), cudaMemcpyDeviceToDevice, matmul_.stream_->get()));
    GpuMatmulArguments arguments = arguments_;
    arguments.rows = rows;
    arguments.x = x_.data() + int64_t{first} * arguments.inputs;
    arguments.y = static_cast<char*>(At(to)) + begin;
    return matmul_.RunWith(algorithm, arguments) == CUBLAS_STATUS_SUCCESS;
  }

  const FixedMatmul& matmul_;
  const GpuMatmulArguments& arguments_;
  int64_t y_bytes_ = 0;
  DeviceBuffer<uint16_t> x_;
  DeviceMemory start_;
  DeviceMemory expected_;
  DeviceMemory y_;
  DeviceBuffer<uint32_t> differences_;
};

FixedMatmul::Shape FixedMatmul::ShapeOf(const GpuMatmulArguments& arguments) {
  const uint64_t row_bytes = uint64_t(arguments.y_stride) * ElementBytes(arguments.fp32);
  return {.inputs = arguments.inputs,
          .outputs = arguments.outputs,
          .y_stride = arguments.y_stride,
          .alignment = AlignmentOf(reinterpret_cast<uintptr_t>(arguments.y) | row_bytes),
          .fp32 = arguments.fp32,
          .add = arguments.add};
}

absl::StatusOr<FixedMatmul> FixedMatmul::Create(GpuType type, const Stream& stream) {
  FixedMatmul matmul(type, stream);
  RETURN_IF_ERROR(stream.MakeDeviceCurrent());
  cublasLtHandle_t handle = nullptr;
  FERRITE_RETURN_IF_CUBLAS_ERROR(cublasLtCreate(&handle));
  matmul.handle_.reset(handle);
  return matmul;
}

// Fastest first, by cuBLASLt's estimate; none that reduces over blocks.
std::vector<cublasLtMatmulAlgo_t> FixedMatmul::Candidates(const Shape& shape, int32_t rows) const {
  Description description(type_, shape, rows);
  cublasLtMatmulPreferenceOpaque_t preference;
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE;
  const uint64_t workspace = 0;
  const auto alignment = static_cast<uint32_t>(shape.alignment);
  // A piece of many rows may begin at any of them.
  const auto x_alignment =
      static_cast<uint32_t>(AlignmentOf(uint64_t(shape.inputs) * kGpuTypeSize));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    return cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)) ==
           CUBLAS_STATUS_SUCCESS;
  };
  cublasLtMatmulHeuristicResult_t results[kMostCandidates];
  int found = 0;
  if (!description.ok || cublasLtMatmulPreferenceInit(&preference) != CUBLAS_STATUS_SUCCESS ||
      !set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions) ||
      !set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace) ||
      !set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x_alignment) ||
      !set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment) ||
      !set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment) ||
      cublasLtMatmulAlgoGetHeuristic(handle_.get(), &description.product, &description.weight,
                                     &description.x, &description.y, &description.y, &preference,
                                     kMostCandidates, results, &found) != CUBLAS_STATUS_SUCCESS) {
    return {};
  }
  std::vector<cublasLtMatmulAlgo_t> candidates;
  for (int i = 0; i < found; ++i) {
    if (results[i].state == CUBLAS_STATUS_SUCCESS) {
      candidates.push_back(results[i].algo);
    }
  }
  return candidates;
}

cublasStatus_t FixedMatmul::RunWith(const cublasLtMatmulAlgo_t& algorithm,
                                    const GpuMatmulArguments& arguments) const {
  Description description(type_, ShapeOf(arguments), arguments.rows);
  if (!description.ok) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  const float alpha = 1.0f;
  const float beta = arguments.add ? 1.0f : 0.0f;
  return cublasLtMatmul(handle_.get(), &description.product, &alpha, arguments.weight,
                        &description.weight, arguments.x, &description.x, &beta, arguments.y,
                        &description.y, arguments.y, &description.y, &algorithm, nullptr, 0,
                        stream_->get());
}

absl::Status FixedMatmul::Prepare(const GpuMatmulArguments& wanted) {
  GpuMatmulArguments arguments = wanted;
  arguments.rows = std::min(arguments.rows, kMostRows);
  const Shape shape = ShapeOf(arguments);
  if (const auto known = choices_.find(shape);
      known != choices_.end() && known->second.back().rows >= arguments.rows) {
    return absl::OkStatus();
  }
  if (shape.inputs % kTensorCoreSizes != 0 || shape.outputs % kTensorCoreSizes != 0) {
    choices_[shape] = {{.rows = arguments.rows, .algorithm = std::nullopt}};
    return absl::OkStatus();
  }
  Trial trial(*this, arguments);
  RETURN_IF_ERROR(trial.Allocate());
  // The fastest that agrees, at the least and the most rows that it would be taken for.
  const auto choose = [&](int32_t least,
                          int32_t most) -> absl::StatusOr<std::optional<cublasLtMatmulAlgo_t>> {
    for (const cublasLtMatmulAlgo_t& candidate : Candidates(shape, most)) {
      ASSIGN_OR_RETURN(const bool agrees, trial.Agrees(candidate, most));
      if (agrees) {
        ASSIGN_OR_RETURN(const bool still_agrees, trial.Agrees(candidate, least));
        if (still_agrees) {
          return candidate;
        }
      }
    }
    return std::nullopt;
  };
  std::vector<cublasLtMatmulAlgo_t> references = Candidates(shape, arguments.rows);
  references.resize(std::min(references.size(), kMostReferences));
  for (const cublasLtMatmulAlgo_t& reference : references) {
    ASSIGN_OR_RETURN(const bool ran, trial.Expect(reference));
    std::vector<Choice> choices;
    bool found = ran;
    for (int32_t least = 1; found && least <= arguments.rows;) {
      const int32_t most = std::min(
          arguments.rows, static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(least))));
      ASSIGN_OR_RETURN(const auto algorithm, choose(least, most));
      found = algorithm.has_value();
      if (found) {
        choices.push_back({most, *algorithm});
      }
      least = most + 1;
    }
    if (found) {
      choices_[shape] = std::move(choices);
      return absl::OkStatus();
    }
  }
  return absl::FailedPreconditionError(
      absl::StrCat("backend.deterministic: cuBLASLt has no algorithms for products of 1 to ",
                   arguments.rows, " rows with weights [", shape.outputs, ", ", shape.inputs,
                   "] whose results agree in every bit on this GPU"));
}

absl::Status FixedMatmul::Run(const GpuMatmulArguments& arguments) const {
  const auto found = choices_.find(ShapeOf(arguments));
  if (found == choices_.end()) {
    return absl::InternalError(absl::StrCat("no algorithm was prepared for weights [",
                                            arguments.outputs, ", ", arguments.inputs, "]"));
  }
  const std::vector<Choice>& choices = found->second;
  const int64_t x_row_bytes = int64_t{arguments.inputs} * static_cast<int64_t>(kGpuTypeSize);
  const int64_t y_row_bytes = int64_t{arguments.y_stride} * ElementBytes(arguments.fp32);
  for (int32_t first = 0; first < arguments.rows;) {
    GpuMatmulArguments piece = arguments;
    piece.rows = std::min(arguments.rows - first, choices.back().rows);
    piece.x = static_cast<const char*>(arguments.x) + first * x_row_bytes;
    piece.y = static_cast<char*>(arguments.y) + first * y_row_bytes;
    const auto choice =
        std::lower_bound(choices.begin(), choices.end(), piece.rows,
                         [](const Choice& each, int32_t rows) { return each.rows < rows; });
    if (choice->algorithm.has_value()) {
      RETURN_IF_ERROR(CublasStatus(RunWith(*choice->algorithm, piece), "cublasLtMatmul"));
    } else {
      FERRITE_RETURN_IF_CUDA_ERROR(PlainMatmul(type_, piece, stream_->get()));
    }
    first += piece.rows;
  }
  return absl::OkStatus();
}

}  // namespace ferrite

#include "cuda/products.h"

#include <algorithm>
#include <initializer_list>
#include <utility>
#include <variant>

#include "cuda/cuda_status.h"
#include "cuda/kernels/add_bias.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

using Epilogue = Product::Epilogue;

// Up to how many rows each way is the fastest, measured on an H200 (docs/performance.md).
// 16-bit weights are streamed, beyond that they go to cuBLAS.
constexpr int32_t kMaxStreamedRows = 8;
static_assert(kMaxStreamedRows <= kMaxStreamRows);
// Every block of a streamed product works the norm out for itself, beyond that one kernel for all.
constexpr int32_t kMaxFusedNormRows = 1;

bool IsFp32(Epilogue epilogue) { return epilogue == Epilogue::kFp32 || epilogue == Epilogue::kAdd; }

// The streaming kernels load eight inputs at a time, and know no stride of y.
bool Streams(int32_t rows, bool is_contiguous, const GpuWeight& weight) {
  return is_contiguous && rows <= kMaxStreamedRows && weight.inputs() % 8 == 0;
}

bool Streams(int32_t rows, bool is_contiguous, const LinearWeight& weight) {
  return std::visit([&](const auto& form) { return Streams(rows, is_contiguous, form); }, weight);
}

bool StreamsWhole(int32_t rows, const Linear& linear) {
  const bool is_contiguous = rows == 1 || linear.parts().size() == 1;
  return std::ranges::all_of(linear.parts(), [&](const LinearPart& part) {
    return Streams(rows, is_contiguous, part.weight);
  });
}

void KeepLarger(const StreamMatmulScratch& scratch, StreamMatmulScratch* most) {
  most->partials = std::max(most->partials, scratch.partials);
  most->counters = std::max(most->counters, scratch.counters);
}

absl::Status SizeScratch(GpuType type, const GpuWeight& weight, StreamMatmulScratch* most) {
  // Pointers are told apart from null alone.
  static constexpr float kSomewhere = 0;
  for (int32_t rows = 1; Streams(rows, /*is_contiguous=*/true, weight); ++rows) {
    for (const bool norm : {false, true}) {
      StreamMatmulArguments arguments;
      arguments.type = type;
      arguments.rows = rows;
      arguments.inputs = static_cast<int32_t>(weight.inputs());
      arguments.outputs = static_cast<int32_t>(weight.outputs());
      arguments.weight = weight.data();
      if (norm) {
        arguments.residual = &kSomewhere;
      } else {
        arguments.x = &kSomewhere;
      }
      StreamMatmulScratch scratch;
      FERRITE_RETURN_IF_CUDA_ERROR(SizeStreamMatmulScratch(arguments, &scratch));
      KeepLarger(scratch, most);
    }
  }
  return absl::OkStatus();
}

}  // namespace

struct Products::Part {
  Product product;              // y is where the part's columns begin
  const float* bias = nullptr;  // [outputs] of the part, or null
  int32_t y_stride = 0;         // elements between rows of y
  bool is_contiguous = false;   // whether rows of y follow each other
};

absl::StatusOr<Products> Products::Create(const TransformerGpuWeights& weights,
                                          const Stream& stream) {
  const GpuType type = weights.embed_table.type();
  ASSIGN_OR_RETURN(GpuMatmul matmul, GpuMatmul::Create(type, stream));
  Products products(type, stream, std::move(matmul));
  RETURN_IF_ERROR(products.AllocateScratch(weights, stream.device()));
  return products;
}

int64_t Products::WorkspaceBytes() {
  constexpr int64_t kPartials = int64_t{16} << 20;
  return GpuMatmul::kWorkspaceBytes + kPartials;
}

absl::Status Products::AllocateScratch(const TransformerGpuWeights& weights, int device) {
  StreamMatmulScratch most;
  const auto size = [&](const Linear& linear) -> absl::Status {
    for (const LinearPart& part : linear.parts()) {
      RETURN_IF_ERROR(std::visit(
          [&](const auto& weight) { return SizeScratch(type_, weight, &most); }, part.weight));
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(size(weights.lm_head));
  for (const LayerWeights& layer : weights.layers) {
    for (const Linear* linear : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      RETURN_IF_ERROR(size(*linear));
    }
  }
  ASSIGN_OR_RETURN(partials_, DeviceBuffer<float>::Create(
                                  device, static_cast<int64_t>(most.partials), "matmul scratch"));
  ASSIGN_OR_RETURN(counters_, DeviceBuffer<int32_t>::Create(
                                  device, static_cast<int64_t>(most.counters), "matmul scratch"));
  if (!counters_.empty()) {
    FERRITE_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(counters_.data(), 0, counters_.bytes(), stream_));
  }
  return absl::OkStatus();
}

bool Products::FusesNorm(int32_t rows, const Linear& linear) const {
  return rows <= kMaxFusedNormRows && StreamsWhole(rows, linear);
}

bool Products::FusesSiluMul(int32_t rows, const Linear& linear) const {
  return linear.parts().size() == 1 && StreamsWhole(rows, linear);
}

absl::Status Products::Run(const Product& product, const Linear& linear) const {
  const bool is_contiguous = product.rows == 1 || linear.parts().size() == 1;
  const size_t element = IsFp32(product.epilogue) ? sizeof(float) : kGpuTypeSize;
  for (const LinearPart& linear_part : linear.parts()) {
    const int64_t first = linear_part.first_output;
    Part part = {.product = product,
                 .bias = linear.bias() == nullptr ? nullptr : linear.bias() + first,
                 .y_stride = static_cast<int32_t>(linear.outputs()),
                 .is_contiguous = is_contiguous};
    part.product.y = static_cast<char*>(product.y) + static_cast<size_t>(first) * element;
    RETURN_IF_ERROR(
        std::visit([&](const auto& weight) { return RunPart(part, weight); }, linear_part.weight));
  }
  return absl::OkStatus();
}

absl::Status Products::RunPart(const Part& part, const GpuWeight& weight) const {
  if (!Streams(part.product.rows, part.is_contiguous, weight)) {
    return RunCublas(part, weight.data(), weight.inputs(), weight.outputs());
  }
  StreamMatmulArguments arguments = StreamArguments(part, weight.inputs(), weight.outputs());
  arguments.weight = weight.data();
  return CudaStatus(StreamMatmul(arguments, stream_), "StreamMatmul");
}

absl::Status Products::RunCublas(const Part& part, const void* weight, int64_t inputs,
                                 int64_t outputs) const {
  const Product& product = part.product;
  const bool fp32 = IsFp32(product.epilogue);
  const auto width = static_cast<int32_t>(outputs);
  RETURN_IF_ERROR(matmul_.Run({.rows = product.rows,
                               .inputs = static_cast<int32_t>(inputs),
                               .outputs = width,
                               .x = product.x,
                               .weight = weight,
                               .y = product.y,
                               .y_stride = part.y_stride,
                               .fp32 = fp32,
                               .add = product.epilogue == Epilogue::kAdd}));
  if (part.bias == nullptr) {
    return absl::OkStatus();
  }
  return CudaStatus(
      fp32 ? AddBiasFp32(part.bias, product.rows, width, static_cast<float*>(product.y),
                         part.y_stride, stream_)
           : AddBias(type_, part.bias, product.rows, width, product.y, part.y_stride, stream_),
      "AddBias");
}

StreamMatmulArguments Products::StreamArguments(const Part& part, int64_t inputs,
                                                int64_t outputs) const {
  const Product& product = part.product;
  StreamMatmulArguments arguments;
  arguments.type = type_;
  arguments.rows = product.rows;
  arguments.inputs = static_cast<int32_t>(inputs);
  arguments.outputs = static_cast<int32_t>(outputs);
  arguments.x = product.x;
  arguments.residual = product.residual;
  arguments.norm_weight = product.norm_weight;
  arguments.epsilon = product.epsilon;
  arguments.bias = part.bias;
  arguments.epilogue = product.epilogue;
  arguments.y = product.y;
  arguments.partials = partials_.data();
  arguments.counters = counters_.data();
  return arguments;
}

}  // namespace ferrite

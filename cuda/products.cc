#include "cuda/products.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "cuda/cuda_status.h"
#include "cuda/device.h"
#include "cuda/kernels/add_bias.h"
#include "cuda/kernels/fill_random.h"
#include "cuda/kernels/gptq.h"
#include "cuda/kernels/int4_matmul.h"
#include "cuda/kernels/stream_int4.h"
#include "cuda/product_scratch.h"
#include "cuda/product_ways.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

using Epilogue = Product::Epilogue;

bool IsFp32(Epilogue epilogue) { return epilogue == Epilogue::kFp32 || epilogue == Epilogue::kAdd; }

}  // namespace

struct Products::Part {
  Product product;              // y is where the part's columns begin
  const float* bias = nullptr;  // [outputs] of the part, or null
  int32_t y_stride = 0;         // elements between rows of y
  bool is_contiguous = false;   // whether rows of y follow each other

  // The same of its outputs from `first` on.
  Part From(int64_t first) const {
    Part rest = *this;
    const size_t element = IsFp32(product.epilogue) ? sizeof(float) : kGpuTypeSize;
    rest.product.y = static_cast<char*>(product.y) + static_cast<size_t>(first) * element;
    rest.bias = bias == nullptr ? nullptr : bias + first;
    return rest;
  }
};

// Whether y is as Int4Matmul wants it: it may not be where a part stands beside others.
bool Products::CanInt4Matmul(const Part& part) {
  return part.y_stride % 2 == 0 && reinterpret_cast<uintptr_t>(part.product.y) % 8 == 0;
}

std::vector<int32_t> Products::RowSizes(int32_t max_rows) {
  std::vector<int32_t> sizes;
  for (int32_t rows = 1; rows <= max_rows; rows = sizes.back() + 1) {
    sizes.push_back(std::min(RoundedRows(rows), max_rows));
  }
  return sizes;
}

absl::StatusOr<Products> Products::Create(const TransformerGpuWeights& weights, int32_t max_rows,
                                          bool deterministic, const Stream& stream) {
  const GpuType type = weights.embed_table.type();
  ASSIGN_OR_RETURN(GpuMatmul matmul, GpuMatmul::Create(type, stream));
  Products products(type, stream, std::move(matmul));
  if (deterministic) {
    ASSIGN_OR_RETURN(products.fixed_, FixedMatmul::Create(type, stream));
  }
  RETURN_IF_ERROR(products.Allocate(weights, max_rows, stream.device()));
  return products;
}

int64_t Products::WorkspaceBytes(const ModelConfig& config, bool quantized, int32_t max_rows,
                                 int32_t num_multiprocessors) {
  constexpr int64_t kPartials = int64_t{16} << 20;
  const int64_t dense = GpuMatmul::kWorkspaceBytes + kPartials;
  if (!quantized) {
    return dense;
  }
  const int32_t inputs = std::max({config.hidden_size, config.q_size(), config.intermediate_size});
  const int32_t outputs = std::max(
      {config.hidden_size, config.q_size() + 2 * config.kv_size(), 2 * config.intermediate_size});
  return dense + kMaxDequantizedBytes +
         static_cast<int64_t>(Int4MatmulWorkspaceBytes(std::min(max_rows, kMaxMarlinRows), inputs,
                                                       outputs, num_multiprocessors));
}

absl::Status Products::Allocate(const TransformerGpuWeights& weights, int32_t max_rows,
                                int device) {
  ScratchSizer sizer(type_, max_rows);
  RETURN_IF_ERROR(sizer.Add(weights.lm_head));
  for (const LayerWeights& layer : weights.layers) {
    for (const Linear* linear : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      RETURN_IF_ERROR(sizer.Add(*linear));
    }
  }
  ASSIGN_OR_RETURN(partials_,
                   DeviceBuffer<float>::Create(
                       device, static_cast<int64_t>(sizer.streamed().partials), "matmul scratch"));
  ASSIGN_OR_RETURN(counters_,
                   DeviceBuffer<int32_t>::Create(
                       device, static_cast<int64_t>(sizer.streamed().counters), "matmul scratch"));
  if (!counters_.empty()) {
    FERRITE_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(counters_.data(), 0, counters_.bytes(), stream_));
  }
  ASSIGN_OR_RETURN(dequantized_, DeviceBuffer<uint16_t>::Create(device, sizer.dequantized(),
                                                                "dequantised weights"));
  if (!sizer.any_marlin()) {
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const DeviceInfo info, QueryDevice(device));
  const size_t bytes = Int4MatmulWorkspaceBytes(
      std::min(max_rows, kMaxMarlinRows), static_cast<int32_t>(sizer.marlin_inputs()),
      static_cast<int32_t>(sizer.marlin_outputs()), info.num_multiprocessors);
  ASSIGN_OR_RETURN(int4_workspace_,
                   DeviceMemory::Create(device, static_cast<int64_t>(bytes), "matmul scratch"));
  return bytes == 0
             ? absl::OkStatus()
             : CudaStatus(cudaMemsetAsync(int4_workspace_.data(), 0, bytes, stream_), "memset");
}

bool Products::FusesNorm(int32_t rows, const Linear& linear) const {
  return !fixed_.has_value() && rows <= kMaxFusedNormRows && StreamsWhole(rows, linear);
}

bool Products::FusesSiluMul(int32_t rows, const Linear& linear) const {
  return !fixed_.has_value() && linear.parts().size() == 1 && StreamsWhole(rows, linear);
}

absl::Status Products::Run(const Product& product, const Linear& linear) const {
  const Part whole = {.product = product,
                      .bias = linear.bias(),
                      .y_stride = static_cast<int32_t>(linear.outputs()),
                      .is_contiguous = product.rows == 1 || linear.parts().size() == 1};
  for (const LinearPart& part : linear.parts()) {
    RETURN_IF_ERROR(std::visit(
        [&](const auto& weight) { return RunPart(whole.From(part.first_output), weight); },
        part.weight));
  }
  return absl::OkStatus();
}

absl::Status Products::Prepare(int32_t rows, Epilogue epilogue, const Linear& linear) {
  // Its buffers are aligned as all are.
  void* const y = reinterpret_cast<void*>(uintptr_t{256});
  const Part whole = {.product = {.rows = rows, .epilogue = epilogue, .y = y},
                      .y_stride = static_cast<int32_t>(linear.outputs())};
  for (const LinearPart& linear_part : linear.parts()) {
    const Part part = whole.From(linear_part.first_output);
    if (const auto* weight = std::get_if<GpuWeight>(&linear_part.weight)) {
      RETURN_IF_ERROR(fixed_->Prepare(
          CublasArguments(part, weight->data(), weight->inputs(), weight->outputs())));
      continue;
    }
    const auto [inputs, outputs] =
        std::visit([](const auto& weight) { return std::pair(weight.inputs(), weight.outputs()); },
                   linear_part.weight);
    FERRITE_RETURN_IF_CUDA_ERROR(FillRandom(type_, dequantized_.data(), dequantized_.size(), 0.0f,
                                            1.0f, /*seed=*/1, stream_));
    const int64_t step = DequantizedOutputs(inputs, outputs);
    for (int64_t first = 0; first < outputs; first += step) {
      RETURN_IF_ERROR(fixed_->Prepare(CublasArguments(part.From(first), dequantized_.data(), inputs,
                                                      std::min(step, outputs - first))));
    }
  }
  return absl::OkStatus();
}

absl::Status Products::RunPart(const Part& part, const GpuWeight& weight) const {
  if (fixed_.has_value() || !Streams(part.product.rows, part.is_contiguous, weight)) {
    return RunCublas(part, weight.data(), weight.inputs(), weight.outputs());
  }
  StreamMatmulArguments arguments = StreamArguments(part, weight.inputs(), weight.outputs());
  arguments.weight = weight.data();
  return CudaStatus(StreamMatmul(arguments, stream_), "StreamMatmul");
}

absl::Status Products::RunPart(const Part& part, const GpuQuantWeight& weight) const {
  return RunDequantized(part, weight.inputs(), weight.outputs(),
                        [&](int32_t first, int32_t count, void* out) {
                          return DequantizeGptq(weight.view(), first, count, type_, out, stream_);
                        });
}

absl::Status Products::RunPart(const Part& part, const MarlinWeight& weight) const {
  if (!fixed_.has_value() && Streams(part.product.rows, part.is_contiguous, weight)) {
    return CudaStatus(StreamInt4(StreamArguments(part, weight.inputs(), weight.outputs()),
                                 weight.view(), stream_),
                      "StreamInt4");
  }
  if (!fixed_.has_value() && part.product.rows <= kMaxMarlinRows && CanInt4Matmul(part)) {
    return RunInt4Matmul(part, weight);
  }
  return RunDequantized(part, weight.inputs(), weight.outputs(),
                        [&](int32_t first, int32_t count, void* out) {
                          return DequantizeInt4(weight.view(), first, count, type_, out, stream_);
                        });
}

absl::Status Products::RunInt4Matmul(const Part& part, const MarlinWeight& weight) const {
  using Int4Epilogue = Int4MatmulArguments::Epilogue;
  const Product& product = part.product;
  const Int4MatmulArguments arguments{
      .type = type_,
      .rows = product.rows,
      .x = product.x,
      .weight = weight.view(),
      .bias = part.bias,
      .epilogue = product.epilogue == Epilogue::kAdd    ? Int4Epilogue::kAdd
                  : product.epilogue == Epilogue::kFp32 ? Int4Epilogue::kFp32
                                                        : Int4Epilogue::kStore,
      .y = product.y,
      .y_stride = part.y_stride,
      .workspace = int4_workspace_.data()};
  return CudaStatus(Int4Matmul(arguments, stream_), "Int4Matmul");
}

template <typename Dequantize>
absl::Status Products::RunDequantized(const Part& part, int64_t inputs, int64_t outputs,
                                      const Dequantize& dequantize) const {
  const int64_t step = DequantizedOutputs(inputs, outputs);
  for (int64_t first = 0; first < outputs; first += step) {
    const int64_t count = std::min(step, outputs - first);
    FERRITE_RETURN_IF_CUDA_ERROR(
        dequantize(static_cast<int32_t>(first), static_cast<int32_t>(count), dequantized_.data()));
    RETURN_IF_ERROR(RunCublas(part.From(first), dequantized_.data(), inputs, count));
  }
  return absl::OkStatus();
}

GpuMatmulArguments Products::CublasArguments(const Part& part, const void* weight, int64_t inputs,
                                             int64_t outputs) const {
  const Product& product = part.product;
  return {.rows = product.rows,
          .inputs = static_cast<int32_t>(inputs),
          .outputs = static_cast<int32_t>(outputs),
          .x = product.x,
          .weight = weight,
          .y = product.y,
          .y_stride = part.y_stride,
          .fp32 = IsFp32(product.epilogue),
          .add = product.epilogue == Epilogue::kAdd};
}

absl::Status Products::RunCublas(const Part& part, const void* weight, int64_t inputs,
                                 int64_t outputs) const {
  const Product& product = part.product;
  const bool fp32 = IsFp32(product.epilogue);
  const auto width = static_cast<int32_t>(outputs);
  GpuMatmulArguments arguments = CublasArguments(part, weight, inputs, outputs);
  if (fixed_.has_value()) {
    RETURN_IF_ERROR(fixed_->Run(arguments));
  } else {
    arguments.rows = std::max(product.rows, std::min(RoundedRows(product.rows), product.room));
    RETURN_IF_ERROR(matmul_.Run(arguments));
  }
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

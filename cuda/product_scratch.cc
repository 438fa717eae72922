#include "cuda/product_scratch.h"

#include <algorithm>
#include <variant>

#include "cuda/cuda_status.h"
#include "cuda/kernels/int4_weight.h"
#include "cuda/kernels/stream_int4.h"
#include "cuda/product_ways.h"
#include "engine/status_macros.h"

namespace ferrite {

using Epilogue = StreamMatmulArguments::Epilogue;

absl::Status ScratchSizer::Add(const Linear& linear) {
  for (const LinearPart& part : linear.parts()) {
    RETURN_IF_ERROR(std::visit([&](const auto& weight) { return Add(weight); }, part.weight));
  }
  return absl::OkStatus();
}

absl::Status ScratchSizer::Add(const GpuWeight& weight) {
  return AddStreamed(weight, 0, SizeStreamMatmulScratch);
}

absl::Status ScratchSizer::Add(const GpuQuantWeight& weight) {
  AddDequantized(weight.inputs(), weight.outputs());
  return absl::OkStatus();
}

absl::Status ScratchSizer::Add(const MarlinWeight& weight) {
  const Int4Weight view = weight.view();
  marlin_inputs_ = std::max(marlin_inputs_, weight.inputs());
  marlin_outputs_ = std::max(marlin_outputs_, weight.outputs());
  AddDequantized(weight.inputs(), weight.outputs());
  const int64_t kind =
      int64_t{4} * view.group_size + 2 * (view.zeros != nullptr) + (view.order != nullptr);
  return AddStreamed(weight, kind,
                     [&](const StreamMatmulArguments& arguments, StreamMatmulScratch* scratch) {
                       return SizeStreamInt4Scratch(arguments, view, scratch);
                     });
}

void ScratchSizer::AddDequantized(int64_t inputs, int64_t outputs) {
  dequantized_ = std::max(dequantized_, inputs * DequantizedOutputs(inputs, outputs));
}

template <typename Weight>
absl::Status ScratchSizer::AddStreamed(const Weight& weight, int64_t kind, const Size& size) {
  const int64_t inputs = weight.inputs();
  const int64_t outputs = weight.outputs();
  if (!seen_.insert({inputs, outputs, kind}).second) {
    return absl::OkStatus();
  }
  for (int32_t rows = 1; rows <= max_rows_ && Streams(rows, true, weight); ++rows) {
    for (const bool norm : {false, true}) {
      RETURN_IF_ERROR(AddProduct(inputs, outputs, rows, norm, Epilogue::kStore, size));
      if (outputs % (2 * kInt4TileOutputs) == 0) {
        RETURN_IF_ERROR(AddProduct(inputs, outputs, rows, norm, Epilogue::kSiluMul, size));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ScratchSizer::AddProduct(int64_t inputs, int64_t outputs, int32_t rows, bool norm,
                                      Epilogue epilogue, const Size& size) {
  // Which of the pointers is null counts, not where they point.
  alignas(16) static constexpr float kSomewhere[4] = {};
  StreamMatmulArguments arguments;
  arguments.type = type_;
  arguments.rows = rows;
  arguments.inputs = static_cast<int32_t>(inputs);
  arguments.outputs = static_cast<int32_t>(outputs);
  arguments.weight = kSomewhere;
  arguments.epilogue = epilogue;
  if (norm) {
    arguments.residual = kSomewhere;
  } else {
    arguments.x = kSomewhere;
  }
  StreamMatmulScratch scratch;
  FERRITE_RETURN_IF_CUDA_ERROR(size(arguments, &scratch));
  streamed_.partials = std::max(streamed_.partials, scratch.partials);
  streamed_.counters = std::max(streamed_.counters, scratch.counters);
  return absl::OkStatus();
}

}  // namespace ferrite

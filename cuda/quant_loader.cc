#include "cuda/quant_loader.h"

#include <algorithm>
#include <span>
#include <variant>

#include "cuda/cuda_status.h"
#include "cuda/kernels/fill_random.h"
#include "cuda/marlin_weight.h"

namespace ferrite {
namespace {

// A copy of what MarlinWeight and GpuQuantWeight show to kernels is read-only.
template <typename T>
T* Writable(const T* data) {
  return const_cast<T*>(data);
}

}  // namespace

absl::StatusOr<QuantLoader> QuantLoader::Create(const std::vector<LayerPlan>& plans,
                                                const Stream& stream, WeightUploader* uploader) {
  int64_t most = 0;
  const auto measure = [&](const ProjectionPlan& projection, const ProjectionPlan&) {
    for (const PlannedPart& part : projection.parts) {
      for (size_t i = 0; part.form == PlannedPart::Form::kMarlin && i < part.count; ++i) {
        most = std::max(most, GpuQuantWeight::Bytes(*projection.linears[part.first + i].shape));
      }
    }
    return absl::OkStatus();
  };
  for (const LayerPlan& plan : plans) {
    RETURN_IF_ERROR(ForEachProjection(plan, plan, measure));
  }
  ASSIGN_OR_RETURN(DeviceMemory room,
                   DeviceMemory::Create(stream.device(), most, "repacking weights"));
  return QuantLoader(stream, uploader, std::make_shared<DeviceMemory>(std::move(room)));
}

absl::Status QuantLoader::Load(const ProjectionPlan& plan, const Linear& linear) const {
  for (size_t i = 0; i < plan.parts.size(); ++i) {
    const PlannedPart& part = plan.parts[i];
    const LinearWeight& weight = linear.parts()[i].weight;
    if (const auto* raw = std::get_if<GpuQuantWeight>(&weight)) {
      RETURN_IF_ERROR(raw->Upload(*plan.linears[part.first].tensors.gptq, uploader_));
    } else if (const auto* tiles = std::get_if<MarlinWeight>(&weight)) {
      RETURN_IF_ERROR(Repack(plan, part, *tiles));
    }
  }
  return absl::OkStatus();
}

absl::Status QuantLoader::Repack(const ProjectionPlan& plan, const PlannedPart& part,
                                 const MarlinWeight& weight) const {
  if (weight.order() != nullptr) {
    const std::vector<int32_t> order = GroupOrder(*plan.linears[part.first].tensors.gptq);
    const TensorView view{.name = plan.name,
                          .dtype = DType::kI32,
                          .shape = {static_cast<int64_t>(order.size())},
                          .data = std::as_bytes(std::span(order))};
    RETURN_IF_ERROR(uploader_->Upload(view, WeightFormat::kInt32, weight.order(), view.shape[0]));
  }
  int64_t first = 0;
  for (size_t i = part.first; i < part.first + part.count; ++i) {
    const PlannedLinear& linear = plan.linears[i];
    // The stream's order keeps the next one from coming before this one is repacked.
    ASSIGN_OR_RETURN(const GpuQuantWeight raw,
                     GpuQuantWeight::Place(plan.name, *linear.shape, room_, stream_.device()));
    RETURN_IF_ERROR(raw.Upload(*linear.tensors.gptq, uploader_));
    RETURN_IF_ERROR(weight.Fill(first, raw, stream_));
    first += linear.outputs;
  }
  return absl::OkStatus();
}

// Values of 4 bits are uniform; their scale gives the weights their deviation.
absl::Status FillRandomInt4(const LinearWeight& weight, float deviation, uint64_t seed,
                            const Stream& stream) {
  constexpr uint32_t kAll = 0xFFFFFFFF;
  constexpr uint32_t kLowNibbles = 0x0F0F0F0F;  // zero points are a byte each
  // The root of the mean square of q - zero, q in 0..15: with 8, and with another such.
  constexpr float kSymmetricSpread = 4.64f;
  constexpr float kSpread = 6.52f;
  const auto fill = [&](const auto& view, const GptqShape& shape, const uint32_t* values,
                        const uint32_t* zeros, int64_t zeros_a_word,
                        uint32_t zero_mask) -> absl::Status {
    const int64_t groups = shape.outputs * shape.num_groups();
    const float scale = deviation / (shape.symmetric ? kSymmetricSpread : kSpread);
    FERRITE_RETURN_IF_CUDA_ERROR(FillRandomBits(Writable(values), shape.outputs * shape.inputs / 8,
                                                kAll, ~seed, stream.get()));
    FERRITE_RETURN_IF_CUDA_ERROR(FillRandomBits(Writable(zeros),
                                                zeros == nullptr ? 0 : groups / zeros_a_word,
                                                zero_mask, ~seed << 1, stream.get()));
    return CudaStatus(FillRandom(GpuType::kFp16, Writable(view.scales), groups, scale, scale / 10,
                                 seed, stream.get()),
                      "FillRandom");
  };
  if (const auto* tiles = std::get_if<MarlinWeight>(&weight)) {
    const Int4Weight& view = tiles->view();
    return fill(view, tiles->shape(), view.tiles, reinterpret_cast<const uint32_t*>(view.zeros), 4,
                kLowNibbles);
  }
  if (const auto* raw = std::get_if<GpuQuantWeight>(&weight)) {
    return fill(raw->view(), raw->shape(), raw->view().qweight, raw->view().qzeros, 8, kAll);
  }
  return absl::OkStatus();
}

}  // namespace ferrite

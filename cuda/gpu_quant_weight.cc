#include "cuda/gpu_quant_weight.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cuda/packed_layout.h"
#include "cuda/thread_team.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

constexpr uint32_t kOnes = 0x11111111;
constexpr uint32_t kEights = 0x88888888;
constexpr int64_t kPerWord = 8;

// Values of a file may lie at any address.
uint32_t WordAt(const TensorView& tensor, int64_t index) {
  uint32_t word;
  std::memcpy(&word, tensor.data.data() + index * int64_t{sizeof(word)}, sizeof(word));
  return word;
}

bool AllZerosAreEight(const GptqTensors& tensors) {
  const int64_t words = tensors.qzeros == nullptr ? 0 : tensors.qzeros->num_elements();
  for (int64_t i = 0; i < words; ++i) {
    if (WordAt(*tensors.qzeros, i) + (tensors.zeros_less_one ? kOnes : 0) != kEights) {
      return false;
    }
  }
  return true;
}

void InspectGroups(const GptqTensors& tensors, GptqShape* shape) {
  std::vector<int64_t> sizes(static_cast<size_t>(shape->num_groups()), 0);
  for (int64_t k = 0; k < shape->inputs; ++k) {
    const int64_t group = WordAt(*tensors.g_idx, k);
    shape->act_order = shape->act_order || group != k / shape->group_size;
    ++sizes[static_cast<size_t>(group)];
  }
  shape->even_groups =
      std::ranges::all_of(sizes, [&](int64_t size) { return size == shape->group_size; });
}

struct Layout {
  explicit Layout(const GptqShape& shape) {
    PackedLayout layout;
    qweight = layout.Add(shape.inputs / kPerWord * shape.outputs * 4);
    scales = layout.Add(shape.num_groups() * shape.outputs * 2);
    qzeros = layout.Add(shape.symmetric ? 0 : shape.num_groups() * shape.outputs / kPerWord * 4);
    g_idx = layout.Add(shape.act_order ? shape.inputs * 4 : 0);
    bytes = layout.bytes();
  }
  int64_t qweight;
  int64_t scales;
  int64_t qzeros;
  int64_t g_idx;
  int64_t bytes;
};

}  // namespace

absl::StatusOr<GptqShape> InspectGptq(const std::string& name, const GptqTensors& tensors) {
  RETURN_IF_ERROR(CheckGptqTensors(name, tensors));
  for (const TensorView* tensor :
       {tensors.qweight, tensors.scales, tensors.qzeros, tensors.g_idx}) {
    if (tensor != nullptr) {
      RETURN_IF_ERROR(ValidateTensor(
          *tensor, tensor == tensors.scales ? WeightFormat::kFp16 : WeightFormat::kInt32));
    }
  }
  if (std::max(tensors.outputs, tensors.inputs) > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("linear '", name, "' has ", tensors.outputs,
                                                   " outputs and ", tensors.inputs,
                                                   " inputs; the most are ", INT32_MAX));
  }
  GptqShape shape{
      .outputs = tensors.outputs,
      .inputs = tensors.inputs,
      .group_size = tensors.group_size,
      .scale_type = tensors.scales->dtype == DType::kF16 ? GpuType::kFp16 : GpuType::kBf16,
      .zeros_less_one = tensors.zeros_less_one,
      .symmetric = AllZerosAreEight(tensors)};
  if (tensors.g_idx != nullptr) {
    InspectGroups(tensors, &shape);
  }
  return shape;
}

int64_t GpuQuantWeight::Bytes(const GptqShape& shape) { return Layout(shape).bytes; }

GpuQuantWeight::GpuQuantWeight(std::string name, const GptqShape& shape,
                               std::shared_ptr<const DeviceMemory> memory, int device)
    : name_(std::move(name)), shape_(shape), device_(device), memory_(std::move(memory)) {
  const Layout layout(shape);
  const auto at = [&](int64_t offset) { return static_cast<char*>(memory_->data()) + offset; };
  view_.qweight = reinterpret_cast<const uint32_t*>(at(layout.qweight));
  view_.scales = reinterpret_cast<const uint16_t*>(at(layout.scales));
  view_.scale_type = shape.scale_type;
  view_.qzeros = shape.symmetric ? nullptr : reinterpret_cast<const uint32_t*>(at(layout.qzeros));
  view_.zeros_less_one = shape.zeros_less_one;
  view_.g_idx = shape.act_order ? reinterpret_cast<const int32_t*>(at(layout.g_idx)) : nullptr;
  view_.inputs = static_cast<int32_t>(shape.inputs);
  view_.outputs = static_cast<int32_t>(shape.outputs);
  view_.group_size = static_cast<int32_t>(shape.group_size);
}

absl::StatusOr<GpuQuantWeight> GpuQuantWeight::Allocate(std::string name, const GptqShape& shape,
                                                        int device) {
  ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Create(device, Bytes(shape), name));
  return GpuQuantWeight(std::move(name), shape, std::make_shared<DeviceMemory>(std::move(memory)),
                        device);
}

absl::StatusOr<GpuQuantWeight> GpuQuantWeight::Place(std::string name, const GptqShape& shape,
                                                     std::shared_ptr<const DeviceMemory> memory,
                                                     int device) {
  if (memory->bytes() < Bytes(shape)) {
    return absl::InvalidArgumentError(absl::StrCat("linear '", name, "' needs ", Bytes(shape),
                                                   " bytes, its place has ", memory->bytes()));
  }
  return GpuQuantWeight(std::move(name), shape, std::move(memory), device);
}

absl::StatusOr<GpuQuantWeight> GpuQuantWeight::Create(std::string name, const GptqTensors& tensors,
                                                      const Stream& stream) {
  ASSIGN_OR_RETURN(const GptqShape shape, InspectGptq(name, tensors));
  ASSIGN_OR_RETURN(GpuQuantWeight weight, Allocate(std::move(name), shape, stream.device()));
  ThreadTeam team(1);
  WeightUploader::Options options;
  options.chunk_bytes =
      std::clamp(weight.bytes(), WeightUploader::kLeastChunkBytes, options.chunk_bytes);
  ASSIGN_OR_RETURN(WeightUploader uploader, WeightUploader::Create(stream, &team, options));
  RETURN_IF_ERROR(weight.Upload(tensors, &uploader));
  RETURN_IF_ERROR(uploader.Finish());
  return weight;
}

absl::Status GpuQuantWeight::Upload(const GptqTensors& tensors, WeightUploader* uploader) const {
  const auto upload = [&](const TensorView& tensor, WeightFormat format, const void* to) {
    return uploader->Upload(tensor, format, const_cast<void*>(to), tensor.num_elements());
  };
  RETURN_IF_ERROR(upload(*tensors.qweight, WeightFormat::kInt32, view_.qweight));
  RETURN_IF_ERROR(upload(*tensors.scales, FormatOf(shape_.scale_type), view_.scales));
  if (view_.qzeros != nullptr) {
    RETURN_IF_ERROR(upload(*tensors.qzeros, WeightFormat::kInt32, view_.qzeros));
  }
  if (view_.g_idx != nullptr) {
    RETURN_IF_ERROR(upload(*tensors.g_idx, WeightFormat::kInt32, view_.g_idx));
  }
  return absl::OkStatus();
}

}  // namespace ferrite

#include "cuda/marlin_weight.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "cuda/cuda_status.h"
#include "cuda/packed_layout.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

constexpr int64_t kOutputsUnit = 64;
constexpr int64_t kGroupUnit = 32;

struct Layout {
  explicit Layout(const GptqShape& shape) {
    const int64_t groups = shape.num_groups() * shape.outputs;
    PackedLayout layout;
    tiles = layout.Add(shape.outputs * shape.inputs / 2);
    scales = layout.Add(groups * 2);
    zeros = layout.Add(shape.symmetric ? 0 : groups);
    order = layout.Add(shape.act_order ? shape.inputs * 4 : 0);
    bytes = layout.bytes();
  }
  int64_t tiles;
  int64_t scales;
  int64_t zeros;
  int64_t order;
  int64_t bytes;
};

}  // namespace

std::string WhyNotMarlin(const GptqShape& shape) {
  if (shape.inputs % kInt4TileInputs != 0) {
    return absl::StrCat(shape.inputs, " inputs are no multiple of ", kInt4TileInputs);
  }
  if (shape.outputs % kOutputsUnit != 0) {
    return absl::StrCat(shape.outputs, " outputs are no multiple of ", kOutputsUnit);
  }
  if (shape.group_size % kGroupUnit != 0) {
    return absl::StrCat("groups of ", shape.group_size, " inputs are no multiple of ", kGroupUnit);
  }
  if (shape.scale_type != GpuType::kFp16) {
    return "scales are in bf16";
  }
  if (!shape.even_groups) {
    return absl::StrCat("g_idx does not give every group ", shape.group_size, " inputs");
  }
  return "";
}

std::vector<int32_t> GroupOrder(const GptqTensors& tensors) {
  std::vector<int32_t> groups(static_cast<size_t>(tensors.inputs));
  std::memcpy(groups.data(), tensors.g_idx->data.data(), groups.size() * sizeof(int32_t));
  std::vector<int32_t> order(groups.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {},
                           [&](int32_t input) { return groups[static_cast<size_t>(input)]; });
  return order;
}

int64_t MarlinWeight::Bytes(const GptqShape& shape) { return Layout(shape).bytes; }

MarlinWeight::MarlinWeight(std::string name, const GptqShape& shape, int device,
                           DeviceMemory memory)
    : name_(std::move(name)), shape_(shape), device_(device), memory_(std::move(memory)) {
  const Layout layout(shape);
  const auto at = [&](int64_t offset) { return static_cast<char*>(memory_.data()) + offset; };
  view_.tiles = reinterpret_cast<const uint32_t*>(at(layout.tiles));
  view_.scales = reinterpret_cast<const uint16_t*>(at(layout.scales));
  view_.zeros = shape.symmetric ? nullptr : reinterpret_cast<const uint8_t*>(at(layout.zeros));
  view_.order = shape.act_order ? reinterpret_cast<const int32_t*>(at(layout.order)) : nullptr;
  view_.inputs = static_cast<int32_t>(shape.inputs);
  view_.outputs = static_cast<int32_t>(shape.outputs);
  view_.group_size = static_cast<int32_t>(shape.group_size);
}

absl::StatusOr<MarlinWeight> MarlinWeight::Allocate(std::string name, const GptqShape& shape,
                                                    int device) {
  if (const std::string why = WhyNotMarlin(shape); !why.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("linear '", name, "' cannot be repacked: ", why));
  }
  ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Create(device, Bytes(shape), name));
  return MarlinWeight(std::move(name), shape, device, std::move(memory));
}

absl::Status MarlinWeight::Fill(int64_t first, const GpuQuantWeight& weight,
                                const Stream& stream) const {
  const GptqShape& part = weight.shape();
  if (first < 0 || first % kInt4TileOutputs != 0 || first + part.outputs > shape_.outputs ||
      part.inputs != shape_.inputs || part.group_size != shape_.group_size ||
      part.act_order != shape_.act_order || (shape_.symmetric && !part.symmetric) ||
      !WhyNotMarlin(part).empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "linear '", weight.name(), "' [", part.outputs, ", ", part.inputs, "] in groups of ",
        part.group_size, " cannot be the outputs from ", first, " on of '", name_, "' [",
        shape_.outputs, ", ", shape_.inputs, "] in groups of ", shape_.group_size));
  }
  const int64_t groups = first * shape_.num_groups();
  Int4Weight tiles = view_;
  tiles.tiles += first * shape_.inputs / 8;
  tiles.scales += groups;
  tiles.zeros = tiles.zeros == nullptr ? nullptr : tiles.zeros + groups;
  tiles.outputs = weight.view().outputs;
  RETURN_IF_ERROR(stream.MakeDeviceCurrent());
  return CudaStatus(RepackGptq(weight.view(), tiles, stream.get()), "RepackGptq");
}

}  // namespace ferrite

#include "cuda/gpu_weight.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cuda/thread_team.h"
#include "cuda/weight_convert.h"
#include "cuda/weight_uploader.h"
#include "engine/status_macros.h"

namespace ferrite {

absl::StatusOr<GpuWeight> GpuWeight::Allocate(std::string name, int64_t outputs, int64_t inputs,
                                              GpuType type, int device) {
  int64_t size = 0;
  if (outputs < 0 || inputs < 0 || __builtin_mul_overflow(outputs, inputs, &size)) {
    return absl::InvalidArgumentError(
        absl::StrCat("weight '", name, "' cannot have shape [", outputs, ", ", inputs, "]"));
  }
  ASSIGN_OR_RETURN(DeviceBuffer<uint16_t> storage,
                   DeviceBuffer<uint16_t>::Create(device, size, name));
  return GpuWeight(std::move(name), outputs, inputs, type, device, std::move(storage));
}

absl::StatusOr<GpuWeight> GpuWeight::Create(const TensorView& tensor, GpuType type,
                                            const Stream& stream) {
  RETURN_IF_ERROR(ValidateTensor(tensor));
  const std::string name(tensor.name);
  if (tensor.shape.size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor '", name, "' must be a matrix [outputs, inputs], got shape [",
                     absl::StrJoin(tensor.shape, ", "), "]"));
  }
  ASSIGN_OR_RETURN(GpuWeight weight,
                   Allocate(name, tensor.shape[0], tensor.shape[1], type, stream.device()));
  ThreadTeam team(1);
  WeightUploader::Options options;
  options.chunk_bytes =
      std::clamp(weight.bytes(), WeightUploader::kLeastChunkBytes, options.chunk_bytes);
  ASSIGN_OR_RETURN(WeightUploader uploader, WeightUploader::Create(stream, &team, options));
  RETURN_IF_ERROR(uploader.Upload(tensor, FormatOf(type), weight.data(), tensor.num_elements()));
  RETURN_IF_ERROR(uploader.Finish());
  return weight;
}

}  // namespace ferrite

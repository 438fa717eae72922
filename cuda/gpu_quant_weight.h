// A matrix of 4-bit weights on a GPU, as GPTQ checkpoints have it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/device_buffer.h"
#include "cuda/kernels/gptq.h"
#include "cuda/kernels/kernel_types.h"
#include "cuda/stream.h"
#include "cuda/weight_uploader.h"
#include "engine/model/gptq.h"

namespace ferrite {

// What of a GPTQ linear decides where and how it is kept.
struct GptqShape {
  int64_t outputs = 0;
  int64_t inputs = 0;
  int64_t group_size = 0;
  GpuType scale_type = GpuType::kFp16;
  bool zeros_less_one = false;  // as GptqTensors has it
  bool symmetric = true;        // all zero points are 8
  bool act_order = false;       // g_idx says other than input / group_size
  bool even_groups = true;      // every group has group_size inputs

  int64_t num_groups() const { return inputs / group_size; }
};

// Reads zero points and g_idx. InvalidArgument as CheckGptqTensors, naming `name` or the tensor; or
// for sizes beyond 32 bits.
absl::StatusOr<GptqShape> InspectGptq(const std::string& name, const GptqTensors& tensors);

// qweight, scales, qzeros unless symmetric, and g_idx if act-ordered. Move-only; the storage goes
// with its last sharer. Read-only once filled, on streams ordered behind the filling.
class GpuQuantWeight {
 public:
  // What Allocate takes.
  static int64_t Bytes(const GptqShape& shape);

  // Contents undefined. ResourceExhausted as DeviceMemory.
  static absl::StatusOr<GpuQuantWeight> Allocate(std::string name, const GptqShape& shape,
                                                 int device);
  // In memory of at least Bytes(shape) that others use too, one after the other.
  static absl::StatusOr<GpuQuantWeight> Place(std::string name, const GptqShape& shape,
                                              std::shared_ptr<const DeviceMemory> memory,
                                              int device);
  // From a checkpoint; everything has arrived when this returns. InvalidArgument as InspectGptq and
  // WeightUploader.
  static absl::StatusOr<GpuQuantWeight> Create(std::string name, const GptqTensors& tensors,
                                               const Stream& stream);

  // Fills it on the uploader's stream, from what its shape was made of.
  absl::Status Upload(const GptqTensors& tensors, WeightUploader* uploader) const;

  // Another owner of the same storage.
  GpuQuantWeight Share() const { return *this; }

  GpuQuantWeight(GpuQuantWeight&&) noexcept = default;
  GpuQuantWeight& operator=(GpuQuantWeight&&) noexcept = default;
  GpuQuantWeight& operator=(const GpuQuantWeight&) = delete;

  const std::string& name() const { return name_; }
  const GptqShape& shape() const { return shape_; }
  int64_t outputs() const { return shape_.outputs; }
  int64_t inputs() const { return shape_.inputs; }
  int device() const { return device_; }
  int64_t bytes() const { return Bytes(shape_); }

  const GptqWeight& view() const { return view_; }  // as the kernels take it

 private:
  GpuQuantWeight(std::string name, const GptqShape& shape,
                 std::shared_ptr<const DeviceMemory> memory, int device);
  GpuQuantWeight(const GpuQuantWeight&) = default;

  std::string name_;
  GptqShape shape_;
  int device_;
  std::shared_ptr<const DeviceMemory> memory_;
  GptqWeight view_;
};

}  // namespace ferrite

// A matrix of 16-bit weights on a GPU.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "cuda/device_buffer.h"
#include "cuda/kernels/kernel_types.h"
#include "cuda/stream.h"
#include "engine/model/tensor_view.h"

namespace ferrite {

// [outputs, inputs], row-major, fp16 or bf16, and a name for messages. Move-only; the storage goes
// with its last sharer. Read-only once filled, by any thread, on streams ordered behind the
// filling.
class GpuWeight {
 public:
  // Contents undefined. ResourceExhausted as DeviceMemory; InvalidArgument for a negative size.
  static absl::StatusOr<GpuWeight> Allocate(std::string name, int64_t outputs, int64_t inputs,
                                            GpuType type, int device);

  // The values of `tensor`, rounded to `type`, copied on `stream` behind what is on it already;
  // they have arrived when this returns. InvalidArgument, naming the tensor, unless it is a
  // floating-point matrix in host memory whose buffer is exactly that of its shape, and none of its
  // values is too large for `type`.
  static absl::StatusOr<GpuWeight> Create(const TensorView& tensor, GpuType type,
                                          const Stream& stream);

  // Another owner of the same storage.
  GpuWeight Share() const { return *this; }

  GpuWeight(GpuWeight&&) noexcept = default;
  GpuWeight& operator=(GpuWeight&&) noexcept = default;
  GpuWeight& operator=(const GpuWeight&) = delete;

  const std::string& name() const { return name_; }
  GpuType type() const { return type_; }
  int64_t outputs() const { return outputs_; }
  int64_t inputs() const { return inputs_; }
  int device() const { return device_; }
  int64_t bytes() const { return storage_->bytes(); }

  void* data() const { return storage_->data(); }
  // From row `first` on; only whole matrices and rows are ever addressed.
  void* Rows(int64_t first) const { return storage_->data() + first * inputs_; }

 private:
  GpuWeight(std::string name, int64_t outputs, int64_t inputs, GpuType type, int device,
            DeviceBuffer<uint16_t> storage)
      : name_(std::move(name)),
        outputs_(outputs),
        inputs_(inputs),
        type_(type),
        device_(device),
        storage_(std::make_shared<DeviceBuffer<uint16_t>>(std::move(storage))) {}
  GpuWeight(const GpuWeight&) = default;

  std::string name_;
  int64_t outputs_;
  int64_t inputs_;
  GpuType type_;
  int device_;
  std::shared_ptr<const DeviceBuffer<uint16_t>> storage_;
};

}  // namespace ferrite

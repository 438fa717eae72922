// The tensors of a model folder, mapped from safetensors files and never copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"

namespace ferrite {

enum class DType { kF64, kF32, kF16, kBF16, kI64, kI32, kI16, kI8, kU8, kBool };

size_t DTypeSize(DType dtype);            // bytes an element
std::string_view DTypeName(DType dtype);  // "F32", as safetensors spells it

// A tensor inside a mapped file. Lives as long as its Checkpoint. `data` has the alignment the file
// gives it, which may be less than that of an element.
struct TensorView {
  std::string_view name;
  DType dtype;
  std::vector<int64_t> shape;       // row-major
  std::span<const std::byte> data;  // exactly num_elements() * DTypeSize(dtype) bytes

  int64_t num_elements() const;
};

// Read-only and thread-safe after Open.
class Checkpoint {
 public:
  // Opens `directory`/model.safetensors, or every shard that
  // `directory`/model.safetensors.index.json names. NotFound if neither is there. Every header is
  // validated before any tensor is handed out: a missing, truncated or lying file, an unknown
  // dtype, offsets that overlap, leave holes or leave the file, and an index that disagrees with
  // its shards are InvalidArgument naming the file, the tensor and the numbers.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);
  ~Checkpoint();

  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  // Null if there is no such tensor.
  const TensorView* Find(std::string_view name) const;

  // NotFound if missing; InvalidArgument naming tensor, expected and found shape if it differs, or
  // if its dtype is not a floating-point one.
  absl::StatusOr<const TensorView*> Get(std::string_view name,
                                        std::span<const int64_t> expected_shape) const;

  const std::vector<TensorView>& tensors() const { return tensors_; }

 private:
  class MappedFile;
  Checkpoint();

  std::vector<std::unique_ptr<MappedFile>> files_;
  std::vector<TensorView> tensors_;
  std::unordered_map<std::string_view, size_t> index_;
};

// Converts a floating-point tensor's elements [first, first + out.size()) to fp32. The range must
// lie within the tensor (checked by the caller).
void ConvertToFloat(const TensorView& tensor, int64_t first, std::span<float> out);

}  // namespace ferrite

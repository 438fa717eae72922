// The safetensors file format, https://github.com/huggingface/safetensors#format: eight bytes of
// little-endian header length, a JSON header, and the tensors' bytes without gaps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/tensor_view.h"

namespace ferrite {

struct SafetensorsEntry {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;       // row-major
  std::span<const std::byte> data;  // inside the file; exactly the shape's bytes
};

// The tensors of a file whose bytes are `file`, in the order of their data. InvalidArgument, which
// starts with `source` and names the tensor and the numbers, unless every byte of the file is
// accounted for exactly once.
absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensors(std::span<const std::byte> file,
                                                               const std::string& source);

}  // namespace ferrite

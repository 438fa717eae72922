// Writes small model folders for tests: safetensors files, valid or deliberately broken.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ferrite::test {

struct TensorToWrite {
  std::string name;
  std::string dtype;  // "F32", as safetensors spells it
  std::vector<int64_t> shape;
  std::string data;  // little-endian elements
};

// Tensors of these dtypes with these values, rounded to nearest even.
TensorToWrite F32Tensor(std::string name, std::vector<int64_t> shape,
                        std::span<const float> values);
TensorToWrite F16Tensor(std::string name, std::vector<int64_t> shape,
                        std::span<const float> values);
TensorToWrite BF16Tensor(std::string name, std::vector<int64_t> shape,
                         std::span<const float> values);

// The bytes of a safetensors file. The first makes a valid one if each tensor's data fits its
// shape; the second takes the JSON header and the data as they are.
std::string SafetensorsBytes(const std::vector<TensorToWrite>& tensors);
std::string RawSafetensorsBytes(std::string_view header, std::string_view data);

// Both throw std::runtime_error on failure.
void WriteFile(const std::string& path, std::string_view bytes);
std::string FreshTempDir();  // an empty folder under gtest's TempDir(), without a trailing slash

}  // namespace ferrite::test

#include "tests/testing/safetensors_writer.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

namespace ferrite::test {
namespace {

template <typename T>
void AppendBytes(const T& value, std::string* out) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out->append(bytes, sizeof(T));
}

uint16_t ToHalf(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(static_cast<double>(value));
  if (std::isnan(value)) {
    return sign | 0x7E00;
  }
  if (magnitude >= 65520.0) {  // halfway between the largest half and the next power of two
    return sign | 0x7C00;
  }
  if (magnitude < 0x1p-14) {
    return sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24));
  }
  const int exponent = std::ilogb(magnitude);
  // A fraction rounded up to 1024 carries into the exponent, as it should.
  const double fraction = std::nearbyint(std::ldexp(magnitude, 10 - exponent)) - 1024;
  return static_cast<uint16_t>(sign + ((exponent + 15) << 10) + static_cast<int>(fraction));
}

uint16_t ToBFloat(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) {
    return static_cast<uint16_t>(bits >> 16 | 0x40);
  }
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

template <typename Convert>
TensorToWrite MakeTensor(std::string name, std::string dtype, std::vector<int64_t> shape,
                         std::span<const float> values, Convert convert) {
  TensorToWrite tensor{std::move(name), std::move(dtype), std::move(shape), ""};
  for (const float value : values) {
    AppendBytes(convert(value), &tensor.data);
  }
  return tensor;
}

}  // namespace

TensorToWrite F32Tensor(std::string name, std::vector<int64_t> shape,
                        std::span<const float> values) {
  return MakeTensor(std::move(name), "F32", std::move(shape), values,
                    [](float value) { return value; });
}

TensorToWrite F16Tensor(std::string name, std::vector<int64_t> shape,
                        std::span<const float> values) {
  return MakeTensor(std::move(name), "F16", std::move(shape), values, ToHalf);
}

TensorToWrite BF16Tensor(std::string name, std::vector<int64_t> shape,
                         std::span<const float> values) {
  return MakeTensor(std::move(name), "BF16", std::move(shape), values, ToBFloat);
}

std::string SafetensorsBytes(const std::vector<TensorToWrite>& tensors) {
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const TensorToWrite& tensor : tensors) {
    const size_t begin = data.size();
    data += tensor.data;
    header[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  return RawSafetensorsBytes(header.dump(), data);
}

std::string RawSafetensorsBytes(std::string_view header, std::string_view data) {
  std::string bytes;
  AppendBytes(static_cast<uint64_t>(header.size()), &bytes);
  return bytes.append(header).append(data);
}

void WriteFile(const std::string& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) {
    throw std::runtime_error("cannot write " + path);
  }
}

std::string FreshTempDir() {
  std::string path = ::testing::TempDir() + "ferrite_XXXXXX";
  // Searchable by others, for tests that give up root's rights.
  if (mkdtemp(path.data()) == nullptr || chmod(path.c_str(), 0755) != 0) {
    throw std::runtime_error("cannot make " + path);
  }
  return path;
}

}  // namespace ferrite::test

// What GPU tests share: skipping where there is no GPU, device copies, poison, and errors measured
// as the design counts them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "cuda/kernels/kernel_types.h"
#include "gtest/gtest.h"

namespace ferrite::test {

inline bool HasGpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

// Every test of a class that derives from this is skipped without a GPU.
class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!HasGpu()) {
      GTEST_SKIP() << "no GPU is visible";
    }
  }
};

inline void CheckCuda(cudaError_t error) {
  ASSERT_EQ(error, cudaSuccess) << cudaGetErrorName(error) << ": " << cudaGetErrorString(error);
}

// Device memory of exactly `size` elements, so that compute-sanitizer sees one too many; filled
// with 0xFF bytes, which are NaN in every floating-point type.
template <typename T>
class Device {
 public:
  explicit Device(size_t size) : size_(size) {
    CheckCuda(cudaMalloc(&data_, std::max<size_t>(1, size) * sizeof(T)));
    CheckCuda(cudaMemset(data_, 0xFF, size * sizeof(T)));
  }
  explicit Device(const std::vector<T>& values) : Device(values.size()) {
    CheckCuda(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* get() const { return data_; }
  size_t size() const { return size_; }
  std::vector<T> Read() const {
    std::vector<T> values(size_);
    CheckCuda(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

// 16-bit values by their bits.
inline uint16_t Narrow(GpuType type, float value) {
  return type == GpuType::kFp16 ? __half_as_ushort(__float2half(value))
                                : __bfloat16_as_ushort(__float2bfloat16(value));
}

inline float Widen(GpuType type, uint16_t bits) {
  return type == GpuType::kFp16 ? __half2float(__ushort_as_half(bits))
                                : __bfloat162float(__ushort_as_bfloat16(bits));
}

inline std::vector<uint16_t> Narrow(GpuType type, std::span<const float> values) {
  std::vector<uint16_t> bits(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    bits[i] = Narrow(type, values[i]);
  }
  return bits;
}

inline std::vector<float> Widen(GpuType type, std::span<const uint16_t> bits) {
  std::vector<float> values(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) {
    values[i] = Widen(type, bits[i]);
  }
  return values;
}

inline std::vector<float> RandomNormal(size_t size, uint32_t seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(size);
  for (float& value : values) {
    value = normal(generator);
  }
  return values;
}

// ||a - b|| / ||b||; NaN if a has one.
inline double RelativeError(std::span<const float> a, std::span<const double> b) {
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

// The bound on a kernel's relative error.
inline double Tolerance(GpuType type) { return type == GpuType::kFp16 ? 2e-3 : 1e-2; }

inline std::string TypeName(GpuType type) { return type == GpuType::kFp16 ? "Fp16" : "Bf16"; }

}  // namespace ferrite::test

// GPUs as the CUDA runtime sees them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ferrite {

struct DeviceInfo {
  int index = 0;
  std::string name;         // "NVIDIA H200"
  int64_t total_bytes = 0;  // device memory
  int64_t free_bytes = 0;   // when asked: what other processes and CUDA itself hold is not free
  int compute_major = 0;
  int compute_minor = 0;
  int num_multiprocessors = 0;
  int64_t l2_bytes = 0;
};

// FailedPrecondition if there is no GPU or its driver is too old, with the versions and what to do.
absl::StatusOr<int> DeviceCount();

// As DeviceCount; FailedPrecondition, naming the index and the count, if there is no such device,
// or naming the device if it is too old for our kernels.
absl::StatusOr<DeviceInfo> QueryDevice(int index);

// What DeviceCount says of cudaGetDeviceCount's answer. Versions as CUDA counts them, 13000 for
// 13.0; a driver version of 0 means that none is loaded.
absl::Status DeviceCountStatus(cudaError_t error, int count, int driver_version,
                               int runtime_version);

// FailedPrecondition unless 0 <= index < count.
absl::Status CheckDeviceIndex(int index, int count);

// FailedPrecondition if a device of this compute capability cannot run our kernels.
absl::Status CheckComputeCapability(int index, const std::string& name, int major, int minor);

// Makes `device` the calling thread's, and the one before that again on destruction.
class ScopedDevice {
 public:
  static absl::StatusOr<ScopedDevice> Enter(int device);
  ~ScopedDevice();

  ScopedDevice(ScopedDevice&& other) noexcept;
  ScopedDevice& operator=(ScopedDevice&&) = delete;

 private:
  explicit ScopedDevice(int previous) : previous_(previous) {}

  int previous_;  // -1: nothing to do
};

}  // namespace ferrite

#include "cuda/device.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "cuda/cuda_status.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// What the kernels are compiled for at least.
constexpr int kLeastComputeMajor = 8;

std::string VersionString(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

}  // namespace

absl::Status DeviceCountStatus(cudaError_t error, int count, int driver_version,
                               int runtime_version) {
  if (error == cudaSuccess && count > 0) {
    return absl::OkStatus();
  }
  if (error == cudaErrorInsufficientDriver) {
    const std::string needed = VersionString(runtime_version);
    return absl::FailedPreconditionError(
        driver_version == 0
            ? absl::StrCat("no GPU can be used: no NVIDIA driver is loaded; install one for CUDA ",
                           needed, " or newer, and start a container with access to its GPUs")
            : absl::StrCat("no GPU can be used: the NVIDIA driver is too old, for CUDA ",
                           VersionString(driver_version), "; install one for CUDA ", needed,
                           " or newer"));
  }
  if (error == cudaSuccess || error == cudaErrorNoDevice) {
    return absl::FailedPreconditionError(
        "no GPU is visible to this process: install one, start a container with access to it, or "
        "look at CUDA_VISIBLE_DEVICES, which may hide it");
  }
  return absl::FailedPreconditionError(
      absl::StrCat("no GPU can be used: ", CudaStatus(error, "cudaGetDeviceCount").message()));
}

absl::Status CheckDeviceIndex(int index, int count) {
  if (index >= 0 && index < count) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("there is no GPU ", index, ": this process sees ", count,
                   count == 1 ? " GPU, index 0" : absl::StrCat(" GPUs, 0 to ", count - 1)));
}

absl::Status CheckComputeCapability(int index, const std::string& name, int major, int minor) {
  if (major >= kLeastComputeMajor) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("GPU ", index, ", ", name, ", has compute capability ", major, ".", minor, "; ",
                   kLeastComputeMajor, ".0 or newer is needed"));
}

absl::StatusOr<int> DeviceCount() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  int driver_version = 0;
  int runtime_version = 0;
  (void)cudaDriverGetVersion(&driver_version);
  (void)cudaRuntimeGetVersion(&runtime_version);
  RETURN_IF_ERROR(DeviceCountStatus(error, count, driver_version, runtime_version));
  return count;
}

absl::StatusOr<DeviceInfo> QueryDevice(int index) {
  ASSIGN_OR_RETURN(const int count, DeviceCount());
  RETURN_IF_ERROR(CheckDeviceIndex(index, count));
  cudaDeviceProp properties;
  FERRITE_RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, index));
  RETURN_IF_ERROR(
      CheckComputeCapability(index, properties.name, properties.major, properties.minor));
  ASSIGN_OR_RETURN(const ScopedDevice scope, ScopedDevice::Enter(index));
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free_bytes, &total_bytes));
  return DeviceInfo{.index = index,
                    .name = properties.name,
                    .total_bytes = static_cast<int64_t>(total_bytes),
                    .free_bytes = static_cast<int64_t>(free_bytes),
                    .compute_major = properties.major,
                    .compute_minor = properties.minor,
                    .num_multiprocessors = properties.multiProcessorCount,
                    .l2_bytes = properties.l2CacheSize};
}

absl::StatusOr<ScopedDevice> ScopedDevice::Enter(int device) {
  int previous = 0;
  FERRITE_RETURN_IF_CUDA_ERROR(cudaGetDevice(&previous));
  if (previous == device) {
    return ScopedDevice(-1);
  }
  FERRITE_RETURN_IF_CUDA_ERROR(cudaSetDevice(device));
  return ScopedDevice(previous);
}

ScopedDevice::ScopedDevice(ScopedDevice&& other) noexcept
    : previous_(std::exchange(other.previous_, -1)) {}

ScopedDevice::~ScopedDevice() {
  if (previous_ >= 0) {
    (void)cudaSetDevice(previous_);
  }
}

}  // namespace ferrite

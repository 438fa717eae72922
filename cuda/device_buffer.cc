#include "cuda/device_buffer.h"

#include <cuda_runtime.h>

#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cuda/cuda_status.h"
#include "cuda/device.h"

namespace ferrite {

absl::StatusOr<DeviceMemory> DeviceMemory::Create(int device, int64_t bytes,
                                                  std::string_view what) {
  const absl::string_view purpose(what.data(), what.size());
  if (bytes < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot allocate ", bytes, " bytes of device memory for ", purpose));
  }
  if (bytes == 0) {
    return DeviceMemory();
  }
  ASSIGN_OR_RETURN(const ScopedDevice scope, ScopedDevice::Enter(device));
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();  // else the next launch would report it
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    FERRITE_RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free_bytes, &total_bytes));
    return absl::ResourceExhaustedError(absl::StrCat("out of device memory on GPU ", device, ": ",
                                                     purpose, " needs ", bytes, " bytes; ",
                                                     free_bytes, " of ", total_bytes, " are free"));
  }
  RETURN_IF_ERROR(CudaStatus(
      error,
      absl::StrCat("cannot allocate ", bytes, " bytes on GPU ", device, " for ", purpose).c_str()));
  return DeviceMemory(data, bytes);
}

void DeviceMemory::Free::operator()(void* data) const { (void)cudaFree(data); }

}  // namespace ferrite

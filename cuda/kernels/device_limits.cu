#include "cuda/kernels/device_limits.h"

namespace ferrite {

cudaError_t GetDeviceLimits(DeviceLimits* limits) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error =
        cudaDeviceGetAttribute(&limits->multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&limits->block_shared_bytes,
                                   cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  return error;
}

}  // namespace ferrite

// What kernels that fill the whole GPU plan by.
#pragma once

#include <cuda_runtime.h>

namespace ferrite {

struct DeviceLimits {
  int multiprocessors = 0;
  int block_shared_bytes = 0;  // the most that one block may ask for
};

// Of the calling thread's device.
cudaError_t GetDeviceLimits(DeviceLimits* limits);

}  // namespace ferrite

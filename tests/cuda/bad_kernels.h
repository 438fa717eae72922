// Kernels that misbehave.
#pragma once

#include <cuda_runtime.h>

namespace ferrite::test {

// Takes every thread of the current device until `*release`, in mapped host memory, is not 0: no
// other kernel can start meanwhile. Then writes to `target`, if that is not null.
cudaError_t LaunchOccupant(const volatile int* release, int* target, cudaStream_t stream);

}  // namespace ferrite::test

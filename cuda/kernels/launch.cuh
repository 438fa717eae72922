// Launching kernels so that the next one's start overlaps this one's end.
//
// A kernel launched by LaunchOverlapped may begin before the one ahead of it on the stream has
// ended (programmatic dependent launch, Hopper and later; CUDA C++ Programming Guide). So each one
// calls WaitForPrevious() before it reads or writes anything that another kernel touches, weights
// and tables that nobody writes excepted, and AllowNext() as soon as its own start-up is over.
// Older chips ignore both.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace ferrite {

__device__ __forceinline__ void WaitForPrevious() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

__device__ __forceinline__ void AllowNext() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

template <typename... Parameters, typename... Arguments>
cudaError_t LaunchOverlapped(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                             size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace ferrite

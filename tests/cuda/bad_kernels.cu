#include "tests/cuda/bad_kernels.h"

namespace ferrite::test {
namespace {

constexpr int kThreads = 512;  // divides what a multiprocessor of any chip holds

__global__ void __launch_bounds__(kThreads) Occupy(const volatile int* release, int* target) {
  while (*release == 0) {
    __nanosleep(1000);
  }
  if (target != nullptr) {
    *target = 1;
  }
}

}  // namespace

cudaError_t LaunchOccupant(const volatile int* release, int* target, cudaStream_t stream) {
  int device = 0;
  int multiprocessors = 0;
  int blocks = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, Occupy, kThreads, 0);
  }
  if (error == cudaSuccess) {
    Occupy<<<multiprocessors * blocks, kThreads, 0, stream>>>(release, target);
    error = cudaGetLastError();
  }
  return error;
}

}  // namespace ferrite::test

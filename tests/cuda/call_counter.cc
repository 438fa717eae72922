// The linker's --wrap sends our calls of these functions here (CMakeLists.txt names them again);
// those that libraries of their own make, such as cuBLAS, it does not reach.
#include "tests/cuda/call_counter.h"

#include <cuda_runtime.h>

#include <atomic>

namespace {

std::atomic<int64_t> event_waits = 0;
std::atomic<int64_t> other_waits = 0;
std::atomic<int64_t> allocations = 0;
std::atomic<int64_t> frees = 0;
std::atomic<int64_t> graphs_made = 0;

}  // namespace

// FERRITE_COUNTED(counter, function, (parameters), (arguments))
#define FERRITE_COUNTED(counter, function, parameters, arguments) \
  extern "C" cudaError_t __real_##function parameters;            \
  extern "C" cudaError_t __wrap_##function parameters {           \
    ++counter;                                                    \
    return __real_##function arguments;                           \
  }

FERRITE_COUNTED(event_waits, cudaEventSynchronize, (cudaEvent_t event), (event))
FERRITE_COUNTED(other_waits, cudaStreamSynchronize, (cudaStream_t stream), (stream))
FERRITE_COUNTED(other_waits, cudaDeviceSynchronize, (), ())
FERRITE_COUNTED(other_waits, cudaMemcpy,
                (void* to, const void* from, size_t bytes, cudaMemcpyKind kind),
                (to, from, bytes, kind))
FERRITE_COUNTED(other_waits, cudaMemset, (void* to, int value, size_t bytes), (to, value, bytes))
FERRITE_COUNTED(allocations, cudaMalloc, (void** data, size_t bytes), (data, bytes))
FERRITE_COUNTED(allocations, cudaMallocAsync, (void** data, size_t bytes, cudaStream_t stream),
                (data, bytes, stream))
FERRITE_COUNTED(allocations, cudaHostAlloc, (void** data, size_t bytes, unsigned flags),
                (data, bytes, flags))
FERRITE_COUNTED(allocations, cudaMallocHost, (void** data, size_t bytes), (data, bytes))
FERRITE_COUNTED(allocations, cudaHostRegister, (void* data, size_t bytes, unsigned flags),
                (data, bytes, flags))
FERRITE_COUNTED(frees, cudaFree, (void* data), (data))
FERRITE_COUNTED(frees, cudaFreeAsync, (void* data, cudaStream_t stream), (data, stream))
FERRITE_COUNTED(frees, cudaFreeHost, (void* data), (data))
FERRITE_COUNTED(graphs_made, cudaStreamBeginCapture,
                (cudaStream_t stream, cudaStreamCaptureMode mode), (stream, mode))
FERRITE_COUNTED(graphs_made, cudaGraphInstantiate,
                (cudaGraphExec_t * executable, cudaGraph_t graph, unsigned long long flags),
                (executable, graph, flags))

namespace ferrite::test {

CudaCalls CountedCudaCalls() {
  return {.event_waits = event_waits.load(),
          .other_waits = other_waits.load(),
          .allocations = allocations.load(),
          .frees = frees.load(),
          .graphs_made = graphs_made.load()};
}

}  // namespace ferrite::test

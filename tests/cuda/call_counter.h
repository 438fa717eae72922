// Counts what a program asks of the CUDA runtime that a step may not: see call_counter.cc.
#pragma once

#include <cstdint>

namespace ferrite::test {

struct CudaCalls {
  int64_t event_waits = 0;  // cudaEventSynchronize
  int64_t other_waits = 0;  // for a stream or the device, by whatever call blocks for one
  int64_t allocations = 0;  // of device or page-locked memory
  int64_t frees = 0;
  int64_t graphs_made = 0;  // captures begun and graphs instantiated
};

// What all threads have called so far.
CudaCalls CountedCudaCalls();

}  // namespace ferrite::test

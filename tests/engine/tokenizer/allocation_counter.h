// Counts the allocations of a test program that links allocation_counter.cc.
#pragma once

#include <cstdint>

namespace ferrite {

// Calls of operator new so far, in all threads.
int64_t AllocationCount();

}  // namespace ferrite

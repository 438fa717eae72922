// Counts the allocations of programs that link ferrite_testing_allocations.
#pragma once

#include <cstdint>

namespace ferrite::test {

struct Allocations {
  int64_t count = 0;
  int64_t bytes = 0;
};

// What operator new has handed to the calling thread so far.
Allocations ThreadAllocations();

}  // namespace ferrite::test

// A file of its own: where the compiler sees these next to a `new`, it takes them for a mismatch.
#include "tests/testing/allocation_counter.h"

#include <cstdlib>
#include <new>

namespace {
thread_local constinit ferrite::test::Allocations allocations;
}  // namespace

ferrite::test::Allocations ferrite::test::ThreadAllocations() { return allocations; }

void* operator new(size_t size, const std::nothrow_t&) noexcept {
  ++allocations.count;
  allocations.bytes += static_cast<int64_t>(size);
  return std::malloc(size);
}
void* operator new(size_t size) {
  if (void* memory = operator new(size, std::nothrow)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

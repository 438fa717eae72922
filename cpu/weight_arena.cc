#include "cpu/weight_arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace ferrite {
namespace {

constexpr int64_t kPage = int64_t{2} << 20;
// Reserved at a time; what is never written to takes no memory.
constexpr int64_t kChunk = 32 * kPage;
constexpr int64_t kAlignment = 64;

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

WeightArena::~WeightArena() {
  for (const Chunk& chunk : chunks_) {
    munmap(chunk.data, chunk.bytes);
  }
}

absl::StatusOr<std::byte*> WeightArena::Allocate(int64_t bytes, std::string_view what) {
  const int64_t physical = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  if (bytes < 0 || bytes > physical) {
    return absl::ResourceExhaustedError(absl::StrCat(absl::string_view(what.data(), what.size()),
                                                     " needs ", bytes, " bytes; the machine has ",
                                                     physical));
  }
  if (chunks_.empty() || used_ + bytes > chunks_.back().bytes) {
    // One page more than asked for, so that the first can be aligned.
    const int64_t size = RoundUp(std::max(bytes, kChunk), kPage);
    void* mapped = mmap(nullptr, size + kPage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) {
      return absl::ResourceExhaustedError(absl::StrCat("cannot map ", size, " bytes for ",
                                                       absl::string_view(what.data(), what.size()),
                                                       ": ", strerror(errno)));
    }
    const auto begin = reinterpret_cast<int64_t>(mapped);
    const int64_t aligned = RoundUp(begin, kPage);
    if (aligned > begin) {
      munmap(mapped, aligned - begin);
    }
    if (aligned < begin + kPage) {
      munmap(reinterpret_cast<void*>(aligned + size), begin + kPage - aligned);
    }
    chunks_.push_back({reinterpret_cast<std::byte*>(aligned), size});
    madvise(chunks_.back().data, size, MADV_HUGEPAGE);  // a wish: small pages work too
    used_ = 0;
  }
  std::byte* data = chunks_.back().data + used_;
  used_ += RoundUp(bytes, kAlignment);
  return data;
}

}  // namespace ferrite

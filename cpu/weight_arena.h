// Memory for weights, in large pages where the kernel has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ferrite {

// Hands out memory that is freed only with the arena. Decoding streams through all weights at every
// step: in small pages, address translation takes a fifth of the bandwidth.
class WeightArena {
 public:
  WeightArena() = default;
  ~WeightArena();
  WeightArena(const WeightArena&) = delete;
  WeightArena& operator=(const WeightArena&) = delete;

  // `bytes` of zeros, 64-byte aligned. ResourceExhausted names `what` and the bytes.
  absl::StatusOr<std::byte*> Allocate(int64_t bytes, std::string_view what);

 private:
  struct Chunk {
    std::byte* data = nullptr;
    int64_t bytes = 0;
  };
  std::vector<Chunk> chunks_;
  int64_t used_ = 0;  // of the last chunk
};

}  // namespace ferrite

// Several arrays in one allocation.
#pragma once

#include <cstdint>

namespace ferrite {

// Hands out offsets one after the other, aligned as cudaMalloc aligns.
class PackedLayout {
 public:
  int64_t Add(int64_t bytes) {
    constexpr int64_t kAlignment = 256;
    const int64_t offset = bytes_;
    bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

}  // namespace ferrite

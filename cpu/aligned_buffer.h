// Cache-line aligned memory whose allocation can fail politely.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace ferrite {

// Move-only; 64-byte aligned; holds plain numbers.
template <typename T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;

  // `count` elements, uninitialised. ResourceExhausted names `what` and the bytes if the machine
  // does not have that much memory (a lazy kernel would hand it out and kill the process later).
  static absl::StatusOr<AlignedBuffer> Create(int64_t count, std::string_view what) {
    int64_t bytes = 0;
    const int64_t physical = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
    if (count < 0 || __builtin_mul_overflow(count, int64_t{sizeof(T)}, &bytes) ||
        bytes > physical - 64) {
      return absl::ResourceExhaustedError(
          absl::StrCat(absl::string_view(what.data(), what.size()), " needs ", count,
                       " elements of ", sizeof(T), " bytes; the machine has ", physical, " bytes"));
    }
    AlignedBuffer buffer;
    buffer.data_.reset(static_cast<T*>(std::aligned_alloc(64, (bytes + 64) / 64 * 64)));
    if (buffer.data_ == nullptr) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "cannot allocate ", bytes, " bytes for ", absl::string_view(what.data(), what.size())));
    }
    buffer.size_ = count;
    return buffer;
  }

  // The same, all zero.
  static absl::StatusOr<AlignedBuffer> CreateZeroed(int64_t count, std::string_view what) {
    absl::StatusOr<AlignedBuffer> buffer = Create(count, what);
    if (buffer.ok()) {
      std::memset(buffer->data(), 0, buffer->bytes());
    }
    return buffer;
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

}  // namespace ferrite

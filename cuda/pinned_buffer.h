// Host memory that the device copies from and to without the host's help.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "cuda/cuda_status.h"

namespace ferrite {

// Page-locked, for every device; contents undefined. Outlives every copy from or to it: wait for an
// event recorded behind the copy before reusing or freeing it.
template <typename T>
class PinnedBuffer {
 public:
  // ResourceExhausted, saying what the memory is for and the bytes, if it cannot be had.
  static absl::StatusOr<PinnedBuffer> Create(int64_t size, std::string_view what) {
    const absl::string_view purpose(what.data(), what.size());
    if (size < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot allocate ", size, " elements of pinned memory for ", purpose));
    }
    void* data = nullptr;
    const size_t bytes = static_cast<size_t>(size) * sizeof(T);
    if (bytes > 0) {
      if (const cudaError_t error = cudaHostAlloc(&data, bytes, cudaHostAllocPortable);
          error != cudaSuccess) {
        (void)cudaGetLastError();
        return CudaStatus(
            error, absl::StrCat("cannot pin ", bytes, " bytes of memory for ", purpose).c_str());
      }
    }
    return PinnedBuffer(static_cast<T*>(data), size);
  }

  PinnedBuffer() = default;

  T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  int64_t bytes() const { return size_ * int64_t{sizeof(T)}; }

 private:
  struct Free {
    void operator()(T* data) const { (void)cudaFreeHost(data); }
  };
  PinnedBuffer(T* data, int64_t size) : data_(data), size_(size) {}

  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

}  // namespace ferrite

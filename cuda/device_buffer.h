// Device memory.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/status_macros.h"

namespace ferrite {

// Bytes of one device, 256-byte aligned, contents undefined. Freeing waits for the device.
class DeviceMemory {
 public:
  // ResourceExhausted, saying what the memory is for, how much was wanted and how much is free.
  // No bytes are a null pointer.
  static absl::StatusOr<DeviceMemory> Create(int device, int64_t bytes, std::string_view what);

  DeviceMemory() = default;

  void* data() const { return data_.get(); }
  int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* data) const;
  };
  DeviceMemory(void* data, int64_t bytes) : data_(data), bytes_(bytes) {}

  std::unique_ptr<void, Free> data_;
  int64_t bytes_ = 0;
};

// As DeviceMemory, counted in elements. Default-constructed: empty, its data null.
template <typename T>
class DeviceBuffer {
 public:
  static absl::StatusOr<DeviceBuffer> Create(int device, int64_t size, std::string_view what) {
    constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / int64_t{sizeof(T)};
    // Too many saturate, and are refused with the rest.
    const int64_t bytes =
        size > kMost ? std::numeric_limits<int64_t>::max() : size * int64_t{sizeof(T)};
    ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Create(device, bytes, what));
    return DeviceBuffer(std::move(memory));
  }

  DeviceBuffer() = default;

  T* data() const { return static_cast<T*>(memory_.data()); }
  int64_t size() const { return bytes() / int64_t{sizeof(T)}; }
  int64_t bytes() const { return memory_.bytes(); }
  bool empty() const { return bytes() == 0; }

 private:
  explicit DeviceBuffer(DeviceMemory memory) : memory_(std::move(memory)) {}

  DeviceMemory memory_;
};

}  // namespace ferrite

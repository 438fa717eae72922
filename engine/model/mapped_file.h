// A file's bytes, mapped read-only.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace ferrite {

// Unmapped on destruction. Thread-safe. Whoever truncates the file meanwhile makes a later access
// to the lost pages fatal (SIGBUS), as with every mapping: replace model files, never rewrite them.
class MappedFile {
 public:
  // Errors as RegularFile::Open.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();

  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::span<const std::byte> bytes_;
};

}  // namespace ferrite

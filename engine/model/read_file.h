// Opening and reading whole files, with errors that say which file and why.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace ferrite {

// A regular file open for reading; closed on destruction.
class RegularFile {
 public:
  // NotFound, PermissionDenied or what else errno says; a directory, pipe or device is a
  // FailedPrecondition. The message has the path and the reason.
  static absl::StatusOr<RegularFile> Open(const std::string& path);
  ~RegularFile();

  RegularFile(RegularFile&& other) noexcept;
  RegularFile& operator=(RegularFile&& other) noexcept;

  int fd() const { return fd_; }
  int64_t size() const { return size_; }  // bytes, when it was opened

 private:
  RegularFile(int fd, int64_t size) : fd_(fd), size_(size) {}

  int fd_;
  int64_t size_;
};

// The bytes of a file of at most 1 GiB. Errors as RegularFile::Open.
absl::StatusOr<std::string> ReadFile(const std::string& path);

}  // namespace ferrite

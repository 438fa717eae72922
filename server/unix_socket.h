// The file of a Unix socket to listen on.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace ferrite {

// The path in "unix:path"; nothing for any other address.
std::optional<std::string> UnixSocketPath(std::string_view listen);

// OK if a server can listen at `path`: nothing is there, or a socket that nobody listens on any
// more, which gRPC then removes. Unavailable if a server listens there, whose socket gRPC would
// remove as well, or something else than a socket is there; InvalidArgument if the path is longer
// than the system takes.
absl::Status CheckUnixSocket(const std::string& path);

// "0660" as permission bits; the text must have the form that server.unix_socket_mode has.
mode_t ParseFileMode(std::string_view octal);

// Gives the files that are made during its life these permission bits and no others, from their
// first moment. Of the whole process: for a start, before threads make files.
class ScopedFileMode {
 public:
  explicit ScopedFileMode(mode_t mode);
  ~ScopedFileMode();
  ScopedFileMode(const ScopedFileMode&) = delete;
  ScopedFileMode& operator=(const ScopedFileMode&) = delete;

 private:
  const mode_t old_mask_;
};

}  // namespace ferrite

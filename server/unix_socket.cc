#include "server/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace ferrite {
namespace {

constexpr std::string_view kScheme = "unix:";
constexpr mode_t kPermissions = 0777;

// Whether a connection is taken, or could not be because of a full queue or of its permissions.
bool IsListenedOn(const sockaddr_un& address) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const int result = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  const bool dead = result != 0 && (errno == ECONNREFUSED || errno == ENOENT);
  close(fd);
  return !dead;
}

}  // namespace

std::optional<std::string> UnixSocketPath(std::string_view listen) {
  if (!listen.starts_with(kScheme)) return std::nullopt;
  return std::string(listen.substr(kScheme.size()));
}

absl::Status CheckUnixSocket(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("server.listen is 'unix:", path, "', whose path has ", path.size(),
                     " bytes; a Unix socket's has at most ", sizeof(address.sun_path) - 1));
  }
  path.copy(address.sun_path, path.size());
  struct stat info = {};
  if (lstat(path.c_str(), &info) != 0)
    return absl::OkStatus();  // what else is wrong, bind will say
  if (!S_ISSOCK(info.st_mode)) {
    return absl::UnavailableError(absl::StrCat("server.listen is 'unix:", path,
                                               "'; there is a file there that is no socket"));
  }
  if (IsListenedOn(address)) {
    return absl::UnavailableError(
        absl::StrCat("server.listen is 'unix:", path, "'; another server listens there"));
  }
  return absl::OkStatus();
}

mode_t ParseFileMode(std::string_view octal) {
  mode_t mode = 0;
  std::from_chars(octal.data(), octal.data() + octal.size(), mode, 8);
  return mode & kPermissions;
}

ScopedFileMode::ScopedFileMode(mode_t mode) : old_mask_(umask(~mode & kPermissions)) {}

ScopedFileMode::~ScopedFileMode() { umask(old_mask_); }

}  // namespace ferrite

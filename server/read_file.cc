#include "server/read_file.h"

#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace ferrite {

absl::StatusOr<std::string> ReadConfiguredFile(const std::string& key, const std::string& path) {
  const auto refuse = [&](const std::string& reason) {
    return absl::NotFoundError(absl::StrCat(key, " is '", path, "', which ", reason));
  };
  try {
    errno = 0;
    std::ifstream in(path, std::ios::binary);
    if (!in) return refuse(absl::StrCat("cannot be opened: ", std::strerror(errno)));
    std::string text(kLargestSmallFile + 1, '\0');
    in.read(text.data(), static_cast<std::streamsize>(text.size()));
    if (in.bad()) return refuse("cannot be read");  // a folder, for one
    text.resize(static_cast<size_t>(in.gcount()));
    if (text.size() > kLargestSmallFile) {
      return refuse(absl::StrCat("has more than ", kLargestSmallFile, " bytes"));
    }
    return text;
  } catch (const std::exception& error) {
    return refuse(absl::StrCat("cannot be read: ", error.what()));
  }
}

}  // namespace ferrite

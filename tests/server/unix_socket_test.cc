#include "server/unix_socket.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <fstream>

#include "absl/strings/str_cat.h"

namespace ferrite {
namespace {

using ::testing::HasSubstr;

class UnixSocketTest : public ::testing::Test {
 protected:
  ~UnixSocketTest() override { unlink(path_.c_str()); }

  // A socket file, listened on or not.
  int Bind(bool listened_on) const {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, path_.size());
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    EXPECT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listened_on ? listen(fd, 1) : 0, 0);
    return fd;
  }

  const std::string path_ = absl::StrCat(::testing::TempDir(), "/ferrite-unix-", getpid());
};

TEST_F(UnixSocketTest, ThePathIsWhatFollowsTheScheme) {
  EXPECT_EQ(UnixSocketPath("unix:/run/a"), "/run/a");
  EXPECT_EQ(UnixSocketPath("unix:a"), "a");
  EXPECT_EQ(UnixSocketPath("127.0.0.1:5"), std::nullopt);
}

TEST_F(UnixSocketTest, NothingAndAStaleSocketAreFine) {
  EXPECT_EQ(CheckUnixSocket(path_), absl::OkStatus());
  close(Bind(true));  // as after a crash
  EXPECT_EQ(CheckUnixSocket(path_), absl::OkStatus());
}

TEST_F(UnixSocketTest, AnotherServersSocketIsNot) {
  const int fd = Bind(true);
  const absl::Status status = CheckUnixSocket(path_);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("another server listens there"));
  close(fd);
}

TEST_F(UnixSocketTest, NeitherIsAFileNorAPathThatIsTooLong) {
  std::ofstream(path_) << "precious";
  EXPECT_THAT(std::string(CheckUnixSocket(path_).message()), HasSubstr("that is no socket"));
  const absl::Status status = CheckUnixSocket("/" + std::string(107, 'a'));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("has 108 bytes; a Unix socket's has at most "
                                                       "107"));
  EXPECT_EQ(CheckUnixSocket("/nowhere-" + std::string(90, 'a')), absl::OkStatus());
}

TEST_F(UnixSocketTest, FilesHaveTheModeFromTheStart) {
  for (const char* octal : {"0600", "660", "0777", "000"}) {
    {
      const ScopedFileMode mode(ParseFileMode(octal));
      close(Bind(false));
    }
    struct stat info = {};
    ASSERT_EQ(stat(path_.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, ParseFileMode(octal)) << octal;
    unlink(path_.c_str());
  }
  EXPECT_EQ(ParseFileMode("0640"), 0640u);
  const mode_t mask = umask(0);
  umask(mask);
  EXPECT_NE(mask, 0777u) << "the old mask is back";
}

}  // namespace
}  // namespace ferrite

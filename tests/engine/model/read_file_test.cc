#include "engine/model/read_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "tests/engine/model/scoped_unprivileged.h"
#include "tests/engine/model/status_matchers.h"
#include "tests/testing/safetensors_writer.h"

namespace ferrite {
namespace {

using test::FreshTempDir;
using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(ReadFileTest, ReadsEveryByte) {
  const std::string path = FreshTempDir() + "/f";
  std::string content(100'000, 'x');
  content[5] = '\0';
  content[99'999] = '\n';
  test::WriteFile(path, content);
  const auto read = ReadFile(path);
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(*read, content);
}

TEST(ReadFileTest, ReadsAnEmptyFile) {
  const std::string path = FreshTempDir() + "/f";
  test::WriteFile(path, "");
  const auto read = ReadFile(path);
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(*read, "");
}

TEST(ReadFileTest, SaysWhichFileIsMissing) {
  const std::string path = FreshTempDir() + "/none.json";
  EXPECT_THAT(ReadFile(path), IsStatus(absl::StatusCode::kNotFound,
                                       AllOf(HasSubstr(path), HasSubstr("No such file"))));
}

TEST(ReadFileTest, RefusesADirectory) {
  const std::string path = FreshTempDir();
  EXPECT_THAT(ReadFile(path), IsStatus(absl::StatusCode::kFailedPrecondition,
                                       AllOf(HasSubstr(path), HasSubstr("Is a directory"))));
}

TEST(ReadFileTest, RefusesAPipeWithoutWaitingForIt) {
  const std::string path = FreshTempDir() + "/pipe";
  ASSERT_EQ(mkfifo(path.c_str(), 0644), 0);
  EXPECT_THAT(ReadFile(path), IsStatus(absl::StatusCode::kFailedPrecondition,
                                       AllOf(HasSubstr(path), HasSubstr("Not a regular file"))));
}

TEST(ReadFileTest, RefusesAHugeFile) {
  const std::string path = FreshTempDir() + "/huge";
  test::WriteFile(path, "");
  ASSERT_EQ(truncate(path.c_str(), (int64_t{1} << 30) + 1), 0);  // sparse
  EXPECT_THAT(ReadFile(path),
              IsStatus(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr(path), HasSubstr("1073741825 bytes, at most 1073741824"))));
  unlink(path.c_str());
}

TEST(ReadFileTest, SaysThatPermissionIsMissing) {
  const std::string path = FreshTempDir() + "/f";
  test::WriteFile(path, "x");
  ASSERT_EQ(chmod(path.c_str(), 0), 0);
  const test::ScopedUnprivileged unprivileged;
  ASSERT_TRUE(unprivileged.active());
  EXPECT_THAT(ReadFile(path), IsStatus(absl::StatusCode::kPermissionDenied,
                                       AllOf(HasSubstr(path), HasSubstr("Permission denied"))));
}

TEST(RegularFileTest, ClosesOnceWhenMoved) {
  const std::string path = FreshTempDir() + "/f";
  test::WriteFile(path, "xyz");
  int fd;
  {
    auto opened = RegularFile::Open(path);
    ASSERT_THAT(opened, IsOk());
    EXPECT_EQ(opened->size(), 3);
    fd = opened->fd();
    RegularFile moved = *std::move(opened);
    EXPECT_EQ(moved.fd(), fd);
    auto other = RegularFile::Open(path);
    ASSERT_THAT(other, IsOk());
    *other = std::move(moved);
    EXPECT_EQ(other->fd(), fd);
    EXPECT_NE(fcntl(fd, F_GETFD), -1);
  }
  EXPECT_EQ(fcntl(fd, F_GETFD), -1);
}

}  // namespace
}  // namespace ferrite

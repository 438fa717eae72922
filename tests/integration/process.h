// Child processes of tests.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

extern char** environ;

namespace ferrite::test {

// A child process with its output in files; killed and reaped on destruction.
class Process {
 public:
  explicit Process(const std::vector<std::string>& arguments) {
    const std::string base =
        absl::StrCat(::testing::TempDir(), "/ferrite-", getpid(), "-", ++made_);
    out_ = base + ".out";
    err_ = base + ".err";
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    std::vector<char*> argv;
    for (const std::string& argument : arguments) {
      argv.push_back(const_cast<char*>(argument.c_str()));
    }
    argv.push_back(nullptr);
    EXPECT_EQ(posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
  }
  ~Process() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      Wait();
    }
    unlink(out_.c_str());
    unlink(err_.c_str());
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void Signal(int signal) const { kill(pid_, signal); }

  // The exit code, or -signal.
  int Wait() {
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  // The port that a server logs when it is ready; empty, and a failure, if it does not within 30 s.
  std::string AwaitPort() const {
    if (Logs(" ready ") && Logs(" seconds=")) {  // the end of that line
      const std::string log = err();
      const size_t port = log.find(" port=", log.find(" ready ")) + 6;
      return log.substr(port, log.find(' ', port) - port);
    }
    ADD_FAILURE() << "the server did not become ready:\n" << err();
    return "";
  }

  // Whether a log line with this text comes within 30 s.
  bool Logs(const std::string& text) const {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (err().find(text) == std::string::npos) {
      if (std::chrono::steady_clock::now() > limit) {
        return false;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }

  std::string out() const { return Read(out_); }
  std::string err() const { return Read(err_); }

 private:
  static std::string Read(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }

  static inline int made_ = 0;
  pid_t pid_ = -1;
  std::string out_, err_;
};

}  // namespace ferrite::test

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "tests/client/fake_server.h"

extern char** environ;

namespace ferrite {
namespace {

// The real program, with its standard output in a pipe.
class ClientProcess {
 public:
  explicit ClientProcess(std::vector<std::string> arguments) {
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    read_end_ = ends[0];
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    arguments.insert(arguments.begin(), FERRITE_CLIENT);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    EXPECT_EQ(posix_spawn(&pid_, FERRITE_CLIENT, &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
  }
  ~ClientProcess() { close(read_end_); }

  // Blocks until some output has come; all of it so far.
  std::string ReadSome() {
    char buffer[256];
    const ssize_t count = read(read_end_, buffer, sizeof(buffer));
    return count > 0 ? std::string(buffer, static_cast<size_t>(count)) : "";
  }

  void Interrupt() { kill(pid_, SIGINT); }

  // The exit code, or -1 if a signal ended it.
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = -1;
  int read_end_ = -1;
};

TEST(InterruptTest, ControlCCancelsTheCall) {
  FakeServer server;
  server.inference.deltas = {"Once upon"};
  server.inference.wait_for_cancel = true;
  ClientProcess client({"generate", "x", "--server", server.address()});
  EXPECT_EQ(client.ReadSome(), "Once upon");  // so the stream is open
  client.Interrupt();
  EXPECT_EQ(client.ReadSome(), "\n");
  EXPECT_EQ(client.Wait(), 11);
  for (int i = 0; i < 1000 && !server.inference.saw_cancel; ++i) usleep(5000);
  EXPECT_TRUE(server.inference.saw_cancel);
}

TEST(InterruptTest, ControlCEndsTheWaitForHealth) {
  FakeServer server;
  server.SetServing("ferrite.v1.Inference", false);
  ClientProcess client({"health", "--wait", "60", "--server", server.address()});
  usleep(500'000);  // into the wait; before it, the signal's default would end the process
  client.Interrupt();
  EXPECT_EQ(client.Wait(), 11);
}

}  // namespace
}  // namespace ferrite

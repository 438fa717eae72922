#include "client/interrupt.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

namespace ferrite {

InterruptWatcher::InterruptWatcher() {
  sigset_t interrupts;
  sigemptyset(&interrupts);
  sigaddset(&interrupts, SIGINT);
  pthread_sigmask(SIG_BLOCK, &interrupts, &previous_mask_);
  signal_fd_ = signalfd(-1, &interrupts, SFD_CLOEXEC);
  stop_fd_ = eventfd(0, EFD_CLOEXEC);
  if (signal_fd_ < 0 || stop_fd_ < 0) {
    // Without descriptors SIGINT keeps its plain meaning.
    pthread_sigmask(SIG_SETMASK, &previous_mask_, nullptr);
    return;
  }
  thread_ = std::thread([this] { Run(); });
}

InterruptWatcher::~InterruptWatcher() {
  if (thread_.joinable()) {
    const uint64_t one = 1;
    // A fresh eventfd always has room for one.
    [[maybe_unused]] const ssize_t written = write(stop_fd_, &one, sizeof(one));
    thread_.join();
    pthread_sigmask(SIG_SETMASK, &previous_mask_, nullptr);
  }
  if (signal_fd_ >= 0) close(signal_fd_);
  if (stop_fd_ >= 0) close(stop_fd_);
}

void InterruptWatcher::Watch(grpc::ClientContext* call) {
  std::lock_guard<std::mutex> lock(mutex_);
  call_ = call;
  if (interrupted_ && call_ != nullptr) call_->TryCancel();
}

bool InterruptWatcher::interrupted() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return interrupted_;
}

void InterruptWatcher::Run() {
  pollfd descriptors[] = {{signal_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
  while (true) {
    if (poll(descriptors, 2, -1) < 0 && errno != EINTR) return;
    if ((descriptors[1].revents & POLLIN) != 0) return;
    if ((descriptors[0].revents & POLLIN) == 0) continue;
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof(info)) != sizeof(info)) continue;
    std::lock_guard<std::mutex> lock(mutex_);
    if (interrupted_) _exit(128 + SIGINT);
    interrupted_ = true;
    if (call_ != nullptr) call_->TryCancel();
  }
}

}  // namespace ferrite

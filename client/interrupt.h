// Ctrl-C ends the call, not the process: the server hears of it and frees what the call held.
#pragma once

#include <grpcpp/client_context.h>
#include <signal.h>

#include <mutex>
#include <thread>

namespace ferrite {

// While it lives, SIGINT cancels the watched call; a second SIGINT exits at once with code 130.
// Must be made before gRPC starts its threads, since it works by blocking the signal in the calling
// thread and in those that the thread starts.
class InterruptWatcher {
 public:
  InterruptWatcher();
  ~InterruptWatcher();
  InterruptWatcher(const InterruptWatcher&) = delete;
  InterruptWatcher& operator=(const InterruptWatcher&) = delete;

  // `call` is cancelled on SIGINT, or at once if there has been one; null watches nothing. A call
  // must be replaced before it is destroyed.
  void Watch(grpc::ClientContext* call);

  bool interrupted() const;

 private:
  void Run();

  sigset_t previous_mask_;
  int signal_fd_ = -1;
  int stop_fd_ = -1;
  mutable std::mutex mutex_;
  grpc::ClientContext* call_ = nullptr;  // under mutex_
  bool interrupted_ = false;             // under mutex_
  std::thread thread_;
};

}  // namespace ferrite

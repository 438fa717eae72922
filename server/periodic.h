// Work that a thread of its own does now and then.
#pragma once

#include <chrono>
#include <functional>
#include <thread>

#include "engine/mutex.h"

namespace ferrite {

// Calls `work` every `seconds`, the first time after as long, until it is destroyed; a call in
// progress is waited for.
class Periodic {
 public:
  Periodic(const char* thread_name, double seconds, std::function<void()> work);
  ~Periodic();
  Periodic(const Periodic&) = delete;
  Periodic& operator=(const Periodic&) = delete;

 private:
  void Run(const char* thread_name);

  const std::chrono::duration<double> interval_;
  const std::function<void()> work_;
  Mutex mutex_;
  CondVar stop_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace ferrite

#include "server/periodic.h"

#include <utility>

#include "engine/clock.h"
#include "engine/thread_name.h"

namespace ferrite {

Periodic::Periodic(const char* thread_name, double seconds, std::function<void()> work)
    : interval_(seconds),
      work_(std::move(work)),
      thread_([this, thread_name] { Run(thread_name); }) {}

Periodic::~Periodic() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    stop_.NotifyAll();
  }
  thread_.join();
}

void Periodic::Run(const char* thread_name) {
  SetThreadName(thread_name);
  while (true) {
    const auto next = Clock::now() + std::chrono::duration_cast<Clock::duration>(interval_);
    {
      MutexLock lock(&mutex_);
      while (!stopping_ && Clock::now() < next) stop_.WaitUntil(&mutex_, next);
      if (stopping_) return;
    }
    work_();
  }
}

}  // namespace ferrite

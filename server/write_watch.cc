#include "server/write_watch.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace ferrite {
namespace {

constexpr double kLooks = 4;  // in the time that a write may take
constexpr double kMostSecondsBetweenLooks = 1;

}  // namespace

struct WriteWatch::Call::Entry {
  Entry(std::string id, std::function<void()> cancel_call)
      : request_id(std::move(id)), cancel(std::move(cancel_call)) {}

  const std::string request_id;
  std::atomic<int64_t> since_ns{0};
  // Held while `cancel` runs. Recursive, since that may end the call on this very thread.
  std::recursive_mutex mutex;
  std::function<void()> cancel;  // null once the call has ended or was cancelled
};

WriteWatch::Call::~Call() {
  {
    MutexLock lock(&watch_->mutex_);
    watch_->calls_.erase(entry_);
  }
  const std::lock_guard<std::recursive_mutex> lock(entry_->mutex);
  entry_->cancel = nullptr;
}

WriteWatch::WriteWatch(double seconds, const Logger* logger) : seconds_(seconds), logger_(logger) {
  if (seconds > 0) {
    looker_ = std::make_unique<Periodic>(
        "ferrite-writes", std::min(seconds / kLooks, kMostSecondsBetweenLooks), [this] { Look(); });
  }
}

WriteWatch::~WriteWatch() = default;

std::unique_ptr<WriteWatch::Call> WriteWatch::Watch(std::string request_id,
                                                    std::function<void()> cancel) {
  auto entry = std::make_shared<Call::Entry>(std::move(request_id), std::move(cancel));
  std::atomic<int64_t>& since_ns = entry->since_ns;
  {
    MutexLock lock(&mutex_);
    calls_.insert(entry);
  }
  return std::unique_ptr<Call>(new Call(this, std::move(entry), since_ns));
}

void WriteWatch::Look() {
  const int64_t now = Call::Nanoseconds(Clock::now());
  std::vector<std::shared_ptr<Call::Entry>> slow;
  {
    MutexLock lock(&mutex_);
    for (const std::shared_ptr<Call::Entry>& entry : calls_) {
      const int64_t since = entry->since_ns.load();
      if (since != 0 && 1e-9 * static_cast<double>(now - since) >= seconds_) slow.push_back(entry);
    }
  }
  for (const std::shared_ptr<Call::Entry>& entry : slow) {
    {
      const std::lock_guard<std::recursive_mutex> lock(entry->mutex);
      const std::function<void()> cancel = std::exchange(entry->cancel, nullptr);
      if (cancel == nullptr) continue;
      ++num_cancelled_;
      cancel();
    }
    // Without the mutex, for which the end of the call may wait on one of gRPC's threads.
    logger_->Log(LogLevel::kWarning, "slow_reader_cancelled",
                 {{"request_id", entry->request_id}, {"seconds", seconds_}});
  }
}

}  // namespace ferrite

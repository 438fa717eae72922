// Bounds the time that a client may leave a message unread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>

#include "engine/clock.h"
#include "engine/mutex.h"
#include "server/log.h"
#include "server/periodic.h"

namespace ferrite {

// One per server. gRPC never fails a write by itself while the connection stands: a client that
// does not read holds its call, and the message in flight, for as long as it likes. Output that
// comes meanwhile merges in the TokenStream, which holds no more than the request's own output. The
// watch looks at all calls several times in the time it allows, and cancels the call of a write
// that has been in flight for longer. Thread-safe.
class WriteWatch {
 public:
  // What the watch knows of one call. Its methods cost an atomic store each.
  class Call {
   public:
    // Ends the watch; waits for a `cancel` that runs on another thread.
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    void WriteStarted() { since_ns_.store(Nanoseconds(Clock::now())); }
    void WriteEnded() { since_ns_.store(0); }

   private:
    friend class WriteWatch;
    struct Entry;
    static int64_t Nanoseconds(Clock::time_point time) {
      return std::chrono::nanoseconds(time.time_since_epoch()).count();
    }
    Call(WriteWatch* watch, std::shared_ptr<Entry> entry, std::atomic<int64_t>& since_ns)
        : watch_(watch), entry_(std::move(entry)), since_ns_(since_ns) {}

    WriteWatch* const watch_;
    const std::shared_ptr<Entry> entry_;
    std::atomic<int64_t>& since_ns_;  // the entry's; 0 while no write is in flight
  };

  // Cancels after `seconds`; never if they are 0. `logger` must outlive it.
  WriteWatch(double seconds, const Logger* logger);
  ~WriteWatch();

  // Watches a call until what is returned is destroyed, which must be before the watch is, and
  // before the call is: at the latest in its OnDone. `cancel` is called at most once, on another
  // thread; what it does may run that OnDone before it returns. The log names `request_id`.
  std::unique_ptr<Call> Watch(std::string request_id, std::function<void()> cancel);

  // Calls that were cancelled so far.
  uint64_t num_cancelled() const { return num_cancelled_.load(); }

 private:
  void Look();

  const double seconds_;
  const Logger* const logger_;
  std::atomic<uint64_t> num_cancelled_{0};
  Mutex mutex_;
  std::unordered_set<std::shared_ptr<Call::Entry>> calls_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<Periodic> looker_;  // last: it uses the rest
};

}  // namespace ferrite

// A queue of device work, and marks in it.
//
// Order of death, for everything that works on a stream: synchronise, then graphs, buffers, events,
// and the stream last. An owner gets it by declaring its members in the opposite order and
// synchronising in its destructor.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ferrite {

class Stream;

// A point in a stream's work.
class Event {
 public:
  enum class Timing { kOff, kOn };

  // Timing::kOff makes recording and waiting cheaper.
  static absl::StatusOr<Event> Create(int device, Timing timing = Timing::kOff);

  cudaEvent_t get() const { return event_.get(); }

  // Moves the mark behind all work that is on `stream` now.
  absl::Status Record(const Stream& stream);

  // Blocks until what was before the mark has ended; at once if it was never recorded. Errors of
  // that work come out here.
  absl::Status Synchronize() const;

  // Whether Synchronize would return at once.
  absl::StatusOr<bool> IsReached() const;

  // From `start` to this one; both recorded with Timing::kOn and reached.
  absl::StatusOr<float> MillisecondsSince(const Event& start) const;

 private:
  struct Destroy {
    void operator()(cudaEvent_t event) const;
  };
  explicit Event(cudaEvent_t event) : event_(event) {}

  std::unique_ptr<CUevent_st, Destroy> event_;
};

// A stream of its own on one device, which does not wait for the legacy default stream nor the
// other way about. Waits for its work on destruction. Used by one thread at a time.
class Stream {
 public:
  // Errors as QueryDevice. Leaves the calling thread's current device as it was.
  static absl::StatusOr<Stream> Create(int device);

  cudaStream_t get() const { return stream_.get(); }
  int device() const { return device_; }

  // Makes the stream's device the calling thread's: kernels are launched from such a thread only.
  absl::Status MakeDeviceCurrent() const;

  // Blocks until all work so far has ended; errors of that work come out here.
  absl::Status Synchronize() const;

  // Work from here on waits, on the device, until `event` is reached.
  absl::Status WaitFor(const Event& event) const;

 private:
  struct Destroy {
    void operator()(cudaStream_t stream) const;
  };
  Stream(int device, cudaStream_t stream) : device_(device), stream_(stream) {}

  int device_;
  std::unique_ptr<CUstream_st, Destroy> stream_;
};

}  // namespace ferrite

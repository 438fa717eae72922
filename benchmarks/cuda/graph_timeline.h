// When a stream runs a graph and when it does not.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "cuda/stream.h"

namespace ferrite {

// While it lives, every cudaGraphLaunch of the program has an event before it and one behind, on
// its stream. The linker's --wrap=cudaGraphLaunch makes that possible (CMakeLists.txt), so that
// what is measured needs no hooks. One at a time; used by the thread that launches.
class GraphTimeline {
 public:
  // Room for the first `max_launches`; later ones are not recorded.
  static absl::StatusOr<std::unique_ptr<GraphTimeline>> Start(int device, int max_launches);
  ~GraphTimeline();

  struct Times {
    std::vector<float> gaps_us;    // from the end of a graph to the start of the next
    std::vector<float> graphs_us;  // from the start of a graph to its end
  };
  // Once what was launched has ended.
  absl::StatusOr<Times> Read() const;

 private:
  friend struct LaunchHook;
  struct Launch {
    Event begin;
    Event end;
  };
  GraphTimeline() = default;

  std::vector<Launch> launches_;
  size_t count_ = 0;
};

}  // namespace ferrite

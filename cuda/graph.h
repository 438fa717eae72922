// A recorded sequence of device work, launched as one.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/stream.h"

namespace ferrite {

// Every address in the graph stays as it was recorded: what it points to outlives the graph, and
// what changes from launch to launch is read from device memory. Dies before the buffers it uses
// and after its last launch has ended (stream.h: order of death).
class Graph {
 public:
  // Calls `record`, whose work on `stream` is recorded and not executed: launch the graph straight
  // after if it was meant to run. Other streams join by events. Allocating, synchronising or
  // touching the legacy default stream inside is an error, which invalidates the recording. On any
  // error, `record`'s own first, the capture is ended and the stream is as before.
  static absl::StatusOr<Graph> Capture(const Stream& stream,
                                       absl::FunctionRef<absl::Status()> record);

  // Brings the graph to the device, so that the first launch costs no more than later ones.
  absl::Status Upload(const Stream& stream) const;

  absl::Status Launch(const Stream& stream) const;

  size_t num_nodes() const { return num_nodes_; }

 private:
  struct Destroy {
    void operator()(cudaGraphExec_t graph) const;
  };
  Graph(cudaGraphExec_t graph, size_t num_nodes) : graph_(graph), num_nodes_(num_nodes) {}

  std::unique_ptr<CUgraphExec_st, Destroy> graph_;
  size_t num_nodes_;
};

}  // namespace ferrite

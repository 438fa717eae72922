// Timing of work as a graph's replay.
#pragma once

#include <cuda_runtime.h>

#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ferrite {

// Captures `calls` calls of `enqueue`, which puts its work on `stream`, as one graph and returns
// the median of its replays, in microseconds a call. Calls it once before, so that what loads
// lazily has done so. `stream` is not the default one. Fails as `enqueue` or CUDA does.
absl::StatusOr<double> TimeGraph(cudaStream_t stream, const std::function<absl::Status()>& enqueue,
                                 int calls = 1);

}  // namespace ferrite

// The captured steps of a backend.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "cuda/gpu_forward.h"
#include "cuda/graph.h"
#include "cuda/step_inputs.h"
#include "cuda/stream.h"

namespace ferrite {

struct DecodeGraph {
  GpuStep step;  // every sequence has one token and samples one
  Graph graph;
};

// Graphs of a few batch sizes, which a smaller batch is padded to.
class DecodeGraphs {
 public:
  // The batch sizes that have graphs, rising.
  static std::vector<int32_t> Sizes(int32_t max_sequences);

  // Captures `pass` at all sizes on `stream`. A step's words are at `inputs` on the device; `words`
  // is pinned host memory for those of the largest.
  absl::Status Capture(const GpuForward& pass, int32_t max_sequences, int32_t* words,
                       int32_t* inputs, const Stream& stream);

  // The smallest graph that holds a step in which every sequence has one token and samples one, and
  // nothing is scored or pooled; null if there is none.
  const DecodeGraph* Find(const StepShape& shape) const;

 private:
  std::vector<DecodeGraph> graphs_;  // by rising size
};

}  // namespace ferrite

#include "cuda/decode_graphs.h"

#include <algorithm>
#include <utility>

#include "cuda/cuda_status.h"
#include "engine/status_macros.h"

namespace ferrite {

// All powers of two to 8, then every eighth, sparser from 64 on.
std::vector<int32_t> DecodeGraphs::Sizes(int32_t max_sequences) {
  std::vector<int32_t> sizes;
  for (int32_t size = 1; size < max_sequences; size += size < 8     ? size
                                                       : size < 64  ? 8
                                                       : size < 256 ? 16
                                                                    : 64) {
    sizes.push_back(size);
  }
  sizes.push_back(max_sequences);
  return sizes;
}

// Each size runs once before it is captured, on a batch of nothing but padding, so that kernels are
// loaded and cuBLAS has made up its mind.
absl::Status DecodeGraphs::Capture(const GpuForward& pass, int32_t max_sequences, int32_t* words,
                                   int32_t* inputs, const Stream& stream) {
  Batch padding;
  padding.Clear();
  for (const int32_t size : Sizes(max_sequences)) {
    const StepShape shape{.tokens = size, .sequences = size, .samples = size};
    FillStepInputs(padding, {}, shape, StepInputs::At(words, shape));
    FERRITE_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(inputs, words, shape.words() * sizeof(int32_t),
                                                 cudaMemcpyHostToDevice, stream.get()));
    const GpuStep step{
        .inputs = StepInputs::At(inputs, shape), .shape = shape, .num_decodes = size};
    RETURN_IF_ERROR(pass.Enqueue(step));
    RETURN_IF_ERROR(stream.Synchronize());
    ASSIGN_OR_RETURN(Graph graph, Graph::Capture(stream, [&] { return pass.Enqueue(step); }));
    RETURN_IF_ERROR(graph.Upload(stream));
    graphs_.push_back({step, std::move(graph)});
  }
  return absl::OkStatus();
}

const DecodeGraph* DecodeGraphs::Find(const StepShape& shape) const {
  const int32_t size = shape.sequences;
  if (size == 0 || shape.tokens != size || shape.samples != size || shape.scored > 0 ||
      shape.pooled > 0) {
    return nullptr;
  }
  const auto graph = std::lower_bound(graphs_.begin(), graphs_.end(), size,
                                      [](const DecodeGraph& candidate, int32_t wanted) {
                                        return candidate.step.shape.sequences < wanted;
                                      });
  return graph == graphs_.end() ? nullptr : &*graph;
}

}  // namespace ferrite

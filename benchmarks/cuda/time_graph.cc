#include "benchmarks/cuda/time_graph.h"

#include <algorithm>
#include <array>

#include "cuda/cuda_status.h"
#include "engine/status_macros.h"

namespace ferrite {

absl::StatusOr<double> TimeGraph(cudaStream_t stream, const std::function<absl::Status()>& enqueue,
                                 int calls) {
  constexpr int kWarmUps = 3;
  RETURN_IF_ERROR(enqueue());
  FERRITE_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; ++i) {
    RETURN_IF_ERROR(enqueue());
  }
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  FERRITE_RETURN_IF_CUDA_ERROR(cudaStreamEndCapture(stream, &graph));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin;
  cudaEvent_t end;
  FERRITE_RETURN_IF_CUDA_ERROR(cudaEventCreate(&begin));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaEventCreate(&end));
  std::array<float, 11> milliseconds;
  const int replays = static_cast<int>(milliseconds.size());
  for (int i = -kWarmUps; i < replays; ++i) {
    FERRITE_RETURN_IF_CUDA_ERROR(cudaEventRecord(begin, stream));
    FERRITE_RETURN_IF_CUDA_ERROR(cudaGraphLaunch(executable, stream));
    FERRITE_RETURN_IF_CUDA_ERROR(cudaEventRecord(end, stream));
    FERRITE_RETURN_IF_CUDA_ERROR(cudaEventSynchronize(end));
    FERRITE_RETURN_IF_CUDA_ERROR(cudaEventElapsedTime(&milliseconds[std::max(i, 0)], begin, end));
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  std::nth_element(milliseconds.begin(), milliseconds.begin() + replays / 2, milliseconds.end());
  return 1e3 * milliseconds[replays / 2] / calls;
}

}  // namespace ferrite

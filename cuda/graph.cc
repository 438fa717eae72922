#include "cuda/graph.h"

#include "cuda/cuda_status.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

struct DestroyGraph {
  void operator()(cudaGraph_t graph) const { (void)cudaGraphDestroy(graph); }
};

// Errors that a capture leaves behind would come out of the next unrelated call.
absl::Status Forgotten(absl::Status status) {
  (void)cudaGetLastError();
  return status;
}

}  // namespace

absl::StatusOr<Graph> Graph::Capture(const Stream& stream,
                                     absl::FunctionRef<absl::Status()> record) {
  // Of this thread alone: workers of other devices may allocate meanwhile.
  FERRITE_RETURN_IF_CUDA_ERROR(
      cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  const absl::Status recorded = record();
  cudaGraph_t captured = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream.get(), &captured);
  const std::unique_ptr<CUgraph_st, DestroyGraph> graph(captured);
  if (!recorded.ok()) {
    return Forgotten(recorded);
  }
  if (ended != cudaSuccess) {
    return Forgotten(CudaStatus(ended, "cudaStreamEndCapture"));
  }
  size_t num_nodes = 0;
  FERRITE_RETURN_IF_CUDA_ERROR(cudaGraphGetNodes(graph.get(), nullptr, &num_nodes));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t instantiated = cudaGraphInstantiate(&executable, graph.get(), 0);
  if (instantiated != cudaSuccess) {
    return Forgotten(CudaStatus(instantiated, "cudaGraphInstantiate"));
  }
  return Graph(executable, num_nodes);
}

void Graph::Destroy::operator()(cudaGraphExec_t graph) const { (void)cudaGraphExecDestroy(graph); }

absl::Status Graph::Upload(const Stream& stream) const {
  return CudaStatus(cudaGraphUpload(graph_.get(), stream.get()), "cudaGraphUpload");
}

absl::Status Graph::Launch(const Stream& stream) const {
  return CudaStatus(cudaGraphLaunch(graph_.get(), stream.get()), "cudaGraphLaunch");
}

}  // namespace ferrite

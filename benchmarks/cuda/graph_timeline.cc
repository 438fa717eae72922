#include "benchmarks/cuda/graph_timeline.h"

#include <cuda_runtime.h>

#include <utility>

#include "engine/status_macros.h"

extern "C" cudaError_t __real_cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);

namespace ferrite {

struct LaunchHook {
  static inline GraphTimeline* timeline = nullptr;

  static cudaError_t Launch(cudaGraphExec_t graph, cudaStream_t stream) {
    if (timeline == nullptr || timeline->count_ == timeline->launches_.size()) {
      return __real_cudaGraphLaunch(graph, stream);
    }
    const GraphTimeline::Launch& launch = timeline->launches_[timeline->count_++];
    cudaError_t error = cudaEventRecord(launch.begin.get(), stream);
    if (error == cudaSuccess) {
      error = __real_cudaGraphLaunch(graph, stream);
    }
    return error == cudaSuccess ? cudaEventRecord(launch.end.get(), stream) : error;
  }
};

absl::StatusOr<std::unique_ptr<GraphTimeline>> GraphTimeline::Start(int device, int max_launches) {
  std::unique_ptr<GraphTimeline> timeline(new GraphTimeline);
  for (int i = 0; i < max_launches; ++i) {
    ASSIGN_OR_RETURN(Event begin, Event::Create(device, Event::Timing::kOn));
    ASSIGN_OR_RETURN(Event end, Event::Create(device, Event::Timing::kOn));
    timeline->launches_.push_back({std::move(begin), std::move(end)});
  }
  LaunchHook::timeline = timeline.get();
  return timeline;
}

GraphTimeline::~GraphTimeline() {
  if (LaunchHook::timeline == this) {
    LaunchHook::timeline = nullptr;
  }
}

absl::StatusOr<GraphTimeline::Times> GraphTimeline::Read() const {
  Times times;
  for (size_t i = 0; i < count_; ++i) {
    ASSIGN_OR_RETURN(const float graph, launches_[i].end.MillisecondsSince(launches_[i].begin));
    times.graphs_us.push_back(1e3f * graph);
    if (i > 0) {
      ASSIGN_OR_RETURN(const float gap, launches_[i].begin.MillisecondsSince(launches_[i - 1].end));
      times.gaps_us.push_back(1e3f * gap);
    }
  }
  return times;
}

}  // namespace ferrite

extern "C" cudaError_t __wrap_cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  return ferrite::LaunchHook::Launch(graph, stream);
}

// Brings quantised linears to the device, in the form that was planned for them.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/device_buffer.h"
#include "cuda/linear_weight.h"
#include "cuda/stream.h"
#include "cuda/weight_plan.h"
#include "cuda/weight_uploader.h"

namespace ferrite {

// All is in the order of one stream. What is repacked passes through room for the largest linear,
// which goes with the loader. Used by one thread; the stream and the uploader outlive it.
class QuantLoader {
 public:
  // `uploader` works on `stream`. ResourceExhausted as DeviceMemory.
  static absl::StatusOr<QuantLoader> Create(const std::vector<LayerPlan>& plans,
                                            const Stream& stream, WeightUploader* uploader);

  // Fills the quantised parts of a projection that was made as planned. InvalidArgument as
  // WeightUploader.
  absl::Status Load(const ProjectionPlan& plan, const Linear& linear) const;

 private:
  QuantLoader(const Stream& stream, WeightUploader* uploader,
              std::shared_ptr<const DeviceMemory> room)
      : stream_(stream), uploader_(uploader), room_(std::move(room)) {}

  absl::Status Repack(const ProjectionPlan& plan, const PlannedPart& part,
                      const MarlinWeight& weight) const;

  const Stream& stream_;
  WeightUploader* uploader_;
  std::shared_ptr<const DeviceMemory> room_;
};

// Random values for benchmarks in a weight that is quantised: they stand for weights of about that
// standard deviation. Leaves others alone.
absl::Status FillRandomInt4(const LinearWeight& weight, float deviation, uint64_t seed,
                            const Stream& stream);

}  // namespace ferrite

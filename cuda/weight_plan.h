// How a model's projections are kept on a GPU, decided before anything is allocated or read.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/gpu_quant_weight.h"
#include "engine/model/model_config.h"
#include "engine/model/model_tensors.h"
#include "engine/status_macros.h"

namespace ferrite {

// 4-bit weights to be made up, for benchmarks.
struct RandomInt4 {
  int32_t group_size = 0;  // 0: weights are in 16 bits; -1: one group has all inputs
  bool symmetric = true;
};

// One of the linears that stand beside each other in a projection.
struct PlannedLinear {
  int64_t outputs = 0;
  LinearTensors tensors;
  std::optional<GptqShape> shape;  // if it is quantised
  std::string declined;            // if it is, and cannot be a MarlinWeight: why
};

// Neighbours that are kept as one matrix.
struct PlannedPart {
  enum class Form { kDense, kGptq, kMarlin };
  Form form = Form::kDense;
  size_t first = 0;  // its linears
  size_t count = 0;
  int64_t outputs = 0;
  GptqShape shape;  // of all together, unless dense

  int64_t Bytes(int64_t inputs) const;  // of device memory
};

struct ProjectionPlan {
  std::string name;
  int64_t inputs = 0;
  bool needs_bias = false;  // whether every linear must have one
  bool has_bias = false;    // whether any has
  std::vector<PlannedLinear> linears;
  std::vector<PlannedPart> parts;

  int64_t outputs() const;
};

struct LayerPlan {
  ProjectionPlan qkv;
  ProjectionPlan o;
  ProjectionPlan gate_up;
  ProjectionPlan down;
};

// Calls visit(projection's plan, projection) for each of a layer, which has members of the same
// names, until one call is not OK.
template <typename Layer, typename Visit>
absl::Status ForEachProjection(const LayerPlan& plan, Layer& layer, const Visit& visit) {
  RETURN_IF_ERROR(visit(plan.qkv, layer.qkv));
  RETURN_IF_ERROR(visit(plan.o, layer.o));
  RETURN_IF_ERROR(visit(plan.gate_up, layer.gate_up));
  return visit(plan.down, layer.down);
}

struct WeightPlanOptions {
  bool fused_int4 = true;  // false: quantised weights stay as they are, and are dequantised
  RandomInt4 random = {};
};

// Linears become one part where they can: those in 16 bits; and those for MarlinWeight whose groups
// and g_idx are the same. `prefix` begins every name. InvalidArgument as InspectGptq.
absl::StatusOr<LayerPlan> PlanLayer(const ModelConfig& config, const std::string& prefix,
                                    const LayerTensors& tensors, const WeightPlanOptions& options);

// How many quantised linears are multiplied in which way.
struct Int4Counts {
  int32_t fused = 0;                        // repacked, for kernels that read 4 bits
  int32_t dequantized = 0;                  // to 16 bits at every product
  std::map<std::string, int32_t> declined;  // why, and how many

  void Add(const ProjectionPlan& plan);
  std::string ToString() const;  // for the log; empty if nothing is quantised
};

}  // namespace ferrite

#include "cuda/linear_weight.h"

#include <utility>

namespace ferrite {
namespace {

struct Shape {
  std::string name;
  int64_t outputs;
  int64_t inputs;
  int device;
};

Shape ShapeOf(const LinearWeight& weight) {
  return std::visit(
      [](const auto& form) {
        return Shape{form.name(), form.outputs(), form.inputs(), form.device()};
      },
      weight);
}

}  // namespace

absl::StatusOr<Linear> Linear::Create(std::vector<LinearWeight> weights, DeviceBuffer<float> bias) {
  if (weights.empty() || weights.size() > kMaxParts) {
    return absl::InvalidArgumentError(
        absl::StrCat("a projection has 1 to ", kMaxParts, " parts, got ", weights.size()));
  }
  const Shape first = ShapeOf(weights[0]);
  Linear linear;
  linear.inputs_ = first.inputs;
  for (LinearWeight& weight : weights) {
    const Shape shape = ShapeOf(weight);
    if (shape.inputs != first.inputs || shape.device != first.device) {
      return absl::InvalidArgumentError(absl::StrCat(
          "weight '", shape.name, "' with ", shape.inputs, " inputs on GPU ", shape.device,
          " cannot stand beside '", first.name, "' with ", first.inputs, " on GPU ", first.device));
    }
    linear.parts_.push_back({std::move(weight), linear.outputs_});
    linear.outputs_ += shape.outputs;
  }
  if (!bias.empty() && bias.size() != linear.outputs_) {
    return absl::InvalidArgumentError(absl::StrCat("the bias of '", first.name, "' must have ",
                                                   linear.outputs_, " elements, got ",
                                                   bias.size()));
  }
  linear.bias_ = std::move(bias);
  return linear;
}

}  // namespace ferrite

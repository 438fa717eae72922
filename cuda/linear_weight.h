// Projections, whatever their weights are stored as.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "cuda/device_buffer.h"
#include "cuda/gpu_quant_weight.h"
#include "cuda/gpu_weight.h"
#include "cuda/marlin_weight.h"

namespace ferrite {

// A weight in one of its forms. Each form has name(), outputs(), inputs() and device(); all but
// GpuWeight are quantised.
using LinearWeight = std::variant<GpuWeight, GpuQuantWeight, MarlinWeight>;

template <typename... Forms>
bool IsQuantized(const std::variant<Forms...>& weight) {
  return !std::holds_alternative<GpuWeight>(weight);
}

// The 16-bit form; FailedPrecondition naming the weight if it is quantised.
template <typename... Forms>
absl::StatusOr<const GpuWeight*> DenseWeight(const std::variant<Forms...>& weight) {
  if (const auto* dense = std::get_if<GpuWeight>(&weight)) {
    return dense;
  }
  const std::string name = std::visit([](const auto& form) { return form.name(); }, weight);
  return absl::FailedPreconditionError(
      absl::StrCat("weight '", name, "' is quantised: it has no 16-bit values"));
}

struct LinearPart {
  LinearWeight weight;
  int64_t first_output = 0;  // where its columns of the product begin
};

// y[rows, outputs] = x[rows, inputs] W^T + bias, with W one matrix, or up to three that stand
// beside each other in the product (those that could not be stacked into one). Move-only.
class Linear {
 public:
  static constexpr size_t kMaxParts = 3;

  // The parts follow each other in the product, in this order. `bias` [outputs] fp32, or empty.
  // InvalidArgument, naming the weight, for no part or more than three, or unless all parts have
  // the same number of inputs and lie on one device, and `bias` has one element an output.
  static absl::StatusOr<Linear> Create(std::vector<LinearWeight> weights,
                                       DeviceBuffer<float> bias = {});

  Linear() = default;  // no parts: a place to be filled

  const std::vector<LinearPart>& parts() const { return parts_; }
  int64_t outputs() const { return outputs_; }
  int64_t inputs() const { return inputs_; }
  float* bias() const { return bias_.data(); }  // [outputs] fp32, or null

 private:
  std::vector<LinearPart> parts_;
  int64_t outputs_ = 0;
  int64_t inputs_ = 0;
  DeviceBuffer<float> bias_;
};

}  // namespace ferrite

#include "cuda/weight_plan.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cuda/kernels/kernel_types.h"
#include "cuda/marlin_weight.h"

namespace ferrite {
namespace {

using Form = PlannedPart::Form;

// What a projection has before it is decided how to keep it.
struct Source {
  const char* name;
  int64_t outputs;
  LinearTensors tensors;
};

GptqShape RandomShape(int64_t outputs, int64_t inputs, const RandomInt4& random) {
  return {.outputs = outputs,
          .inputs = inputs,
          .group_size = random.group_size < 0 ? inputs : random.group_size,
          .symmetric = random.symmetric};
}

Form FormOf(const PlannedLinear& linear, bool fused_int4) {
  if (!linear.shape.has_value()) {
    return Form::kDense;
  }
  return fused_int4 && linear.declined.empty() ? Form::kMarlin : Form::kGptq;
}

bool SameGroups(const PlannedLinear& a, const PlannedLinear& b) {
  return a.shape->group_size == b.shape->group_size && a.shape->act_order == b.shape->act_order &&
         (!a.shape->act_order ||
          std::ranges::equal(a.tensors.gptq->g_idx->data, b.tensors.gptq->g_idx->data));
}

// Whether `linear`, which would be kept as `form`, can lie behind the linears of `part`.
bool Joins(const ProjectionPlan& plan, const PlannedPart& part, Form form,
           const PlannedLinear& linear) {
  return part.form == form &&
         (form == Form::kDense ||
          (form == Form::kMarlin && SameGroups(plan.linears[part.first], linear)));
}

void Divide(bool fused_int4, ProjectionPlan* plan) {
  for (size_t i = 0; i < plan->linears.size(); ++i) {
    const PlannedLinear& linear = plan->linears[i];
    const Form form = FormOf(linear, fused_int4);
    if (plan->parts.empty() || !Joins(*plan, plan->parts.back(), form, linear)) {
      plan->parts.push_back({.form = form,
                             .first = i,
                             .count = 1,
                             .outputs = linear.outputs,
                             .shape = linear.shape.value_or(GptqShape())});
      continue;
    }
    PlannedPart& part = plan->parts.back();
    ++part.count;
    part.outputs += linear.outputs;
    part.shape.outputs = part.outputs;
    part.shape.symmetric = part.shape.symmetric && linear.shape.value_or(GptqShape()).symmetric;
  }
}

absl::StatusOr<ProjectionPlan> Plan(std::string name, int64_t inputs, bool needs_bias,
                                    std::initializer_list<Source> sources,
                                    const WeightPlanOptions& options) {
  ProjectionPlan plan{.name = std::move(name),
                      .inputs = inputs,
                      .needs_bias = needs_bias,
                      .has_bias = needs_bias,
                      .linears = {},
                      .parts = {}};
  for (const Source& source : sources) {
    PlannedLinear linear{.outputs = source.outputs,
                         .tensors = source.tensors,
                         .shape = std::nullopt,
                         .declined = {}};
    if (options.random.group_size != 0) {
      linear.shape = RandomShape(source.outputs, inputs, options.random);
    } else if (source.tensors.gptq.has_value()) {
      const std::string linear_name = absl::StrCat(plan.name, "'s ", source.name);
      ASSIGN_OR_RETURN(linear.shape, InspectGptq(linear_name, *source.tensors.gptq));
      if (linear.shape->outputs != source.outputs || linear.shape->inputs != inputs) {
        return absl::InvalidArgumentError(absl::StrCat(
            "linear '", linear_name, "' is [", linear.shape->outputs, ", ", linear.shape->inputs,
            "], the configuration calls for [", source.outputs, ", ", inputs, "]"));
      }
    }
    if (linear.shape.has_value()) {
      linear.declined = WhyNotMarlin(*linear.shape);
    }
    plan.has_bias = plan.has_bias || source.tensors.bias != nullptr;
    plan.linears.push_back(std::move(linear));
  }
  Divide(options.fused_int4, &plan);
  return plan;
}

}  // namespace

int64_t PlannedPart::Bytes(int64_t inputs) const {
  switch (form) {
    case Form::kMarlin:
      return MarlinWeight::Bytes(shape);
    case Form::kGptq:
      return GpuQuantWeight::Bytes(shape);
    case Form::kDense:
      break;
  }
  return outputs * inputs * int64_t{kGpuTypeSize};
}

int64_t ProjectionPlan::outputs() const {
  int64_t sum = 0;
  for (const PlannedPart& part : parts) {
    sum += part.outputs;
  }
  return sum;
}

absl::StatusOr<LayerPlan> PlanLayer(const ModelConfig& config, const std::string& prefix,
                                    const LayerTensors& tensors, const WeightPlanOptions& options) {
  const int64_t hidden = config.hidden_size;
  const int64_t q_size = config.q_size();
  const int64_t kv_size = config.kv_size();
  const int64_t intermediate = config.intermediate_size;
  LayerPlan plan;
  ASSIGN_OR_RETURN(
      plan.qkv,
      Plan(prefix + "qkv", hidden, config.qkv_bias,
           {{"q", q_size, tensors.q}, {"k", kv_size, tensors.k}, {"v", kv_size, tensors.v}},
           options));
  ASSIGN_OR_RETURN(plan.o,
                   Plan(prefix + "o", q_size, config.o_bias, {{"o", hidden, tensors.o}}, options));
  ASSIGN_OR_RETURN(
      plan.gate_up,
      Plan(prefix + "gate_up", hidden, config.mlp_bias,
           {{"gate", intermediate, tensors.gate}, {"up", intermediate, tensors.up}}, options));
  ASSIGN_OR_RETURN(plan.down, Plan(prefix + "down", intermediate, config.mlp_bias,
                                   {{"down", hidden, tensors.down}}, options));
  return plan;
}

void Int4Counts::Add(const ProjectionPlan& plan) {
  for (const PlannedPart& part : plan.parts) {
    const auto count = static_cast<int32_t>(part.count);
    if (part.form == Form::kMarlin) {
      fused += count;
    } else if (part.form == Form::kGptq) {
      dequantized += count;
      const std::string& why = plan.linears[part.first].declined;
      declined[why.empty() ? "fused kernels are turned off" : why] += count;
    }
  }
}

std::string Int4Counts::ToString() const {
  if (fused + dequantized == 0) {
    return "";
  }
  std::string text =
      absl::StrCat(fused, " linears in 4 bits by fused kernels, ", dequantized, " by dequantising");
  if (!declined.empty()) {
    absl::StrAppend(&text, " (",
                    absl::StrJoin(declined, "; ",
                                  [](std::string* out, const auto& reason) {
                                    absl::StrAppend(out, reason.second, ": ", reason.first);
                                  }),
                    ")");
  }
  return text;
}

}  // namespace ferrite

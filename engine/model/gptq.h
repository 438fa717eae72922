// Linears in GPTQ's INT4 layout (arxiv.org/abs/2210.17323), as AutoGPTQ and GPTQModel store them.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/checkpoint.h"
#include "engine/model/gptq_config.h"
#include "engine/model/tensor_view.h"

namespace ferrite {

// W[n, k] = scale[g, n] * (q[k, n] - zero[g, n]) with g the group of input k. Points into the
// checkpoint, which must outlive it.
struct GptqTensors {
  // I32 [inputs / 8, outputs]: q of input k in bits 4 (k % 8) and up of row k / 8.
  const TensorView* qweight = nullptr;
  const TensorView* scales = nullptr;  // F16 or BF16 [groups, outputs]
  // I32 [groups, outputs / 8], packed like that along outputs; null: all zero points are 8.
  const TensorView* qzeros = nullptr;
  const TensorView* g_idx = nullptr;  // I32 [inputs] in [0, groups), or null: input k / group_size
  int64_t inputs = 0;
  int64_t outputs = 0;
  int64_t group_size = 0;  // inputs a group; `inputs` where one group has all
  bool zeros_less_one = false;

  int64_t num_groups() const { return inputs / group_size; }
};

// Finds `name`.qweight, .scales, .qzeros and .g_idx and checks every shape, type and index.
// NotFound names a tensor that is missing; InvalidArgument the tensor, what it has and what was
// expected. qzeros may be missing if the quantisation is symmetric, g_idx unless it is act-ordered.
absl::StatusOr<GptqTensors> FindGptqTensors(const Checkpoint& checkpoint, const std::string& prefix,
                                            int64_t outputs, int64_t inputs,
                                            const GptqConfig& config);

// The same checks of tensors found elsewhere; `prefix` names the linear.
absl::Status CheckGptqTensors(const std::string& prefix, const GptqTensors& tensors);

// out[count, inputs] = rows [first, first + count) of W, exactly: fp32 holds every product.
void DequantizeRows(const GptqTensors& tensors, int64_t first, int64_t count, float* out);

}  // namespace ferrite

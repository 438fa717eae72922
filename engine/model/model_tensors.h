// The tensors of a checkpoint, each at its place in the model.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/checkpoint.h"
#include "engine/model/gptq.h"
#include "engine/model/model_config.h"
#include "engine/model/tensor_view.h"

namespace ferrite {

// A weight [outputs, inputs], in one of two forms.
struct LinearTensors {
  const TensorView* weight = nullptr;              // floating point, or null
  std::optional<GptqTensors> gptq = std::nullopt;  // if `weight` is null
  const TensorView* bias = nullptr;                // [outputs], or null

  int64_t outputs() const { return gptq.has_value() ? gptq->outputs : weight->shape[0]; }
  int64_t inputs() const { return gptq.has_value() ? gptq->inputs : weight->shape[1]; }
  // out[count, inputs] = rows [first, first + count) in fp32.
  void ReadRows(int64_t first, int64_t count, float* out) const;
};

struct LayerTensors {
  const TensorView* input_norm = nullptr;  // [hidden]
  LinearTensors q;                         // [q_size, hidden]
  LinearTensors k;                         // [kv_size, hidden]
  LinearTensors v;                         // [kv_size, hidden]
  const TensorView* q_norm = nullptr;      // [head_dim], or null
  const TensorView* k_norm = nullptr;      // [head_dim], or null
  LinearTensors o;                         // [hidden, q_size]
  const TensorView* post_norm = nullptr;   // [hidden]
  LinearTensors gate;                      // [intermediate, hidden]
  LinearTensors up;                        // [intermediate, hidden]
  LinearTensors down;                      // [hidden, intermediate]
};

// Points into the checkpoint, which must outlive it.
struct ModelTensors {
  const TensorView* embed = nullptr;  // [vocab, hidden]
  std::vector<LayerTensors> layers;
  const TensorView* final_norm = nullptr;  // [hidden]
  const TensorView* lm_head = nullptr;     // [vocab, hidden]; null if it is the embedding
  int64_t num_parameters = 0;              // a tied lm_head counts once
};

// Whether any linear is quantised.
bool IsQuantized(const ModelTensors& tensors);

// Finds every tensor that `config` calls for; names may lack their "model." prefix, all or none.
// NotFound names a tensor that is missing and its shape; InvalidArgument one of the wrong shape,
// with expected and found shape, of a dtype that is no floating-point one, or one that the model
// has no place for. With `config.gptq` every linear of a layer may be in GPTQ's layout, and one has
// to be; a bias that comes with it counts even if `config` knows of none. rotary_emb.inv_freq is
// let be. A tied model may have embed_tokens.weight, lm_head.weight, or both; if those differ they
// are not tied, as transformers has it.
absl::StatusOr<ModelTensors> ResolveTensors(const ModelConfig& config,
                                            const Checkpoint& checkpoint);

}  // namespace ferrite

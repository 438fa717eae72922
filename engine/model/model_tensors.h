// The tensors of a checkpoint, each at its place in the model.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"
#include "engine/model/tensor_view.h"

namespace ferrite {

struct LinearTensors {
  const TensorView* weight = nullptr;  // [outputs, inputs]
  const TensorView* bias = nullptr;    // [outputs], or null
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

// Finds every tensor that `config` calls for; names may lack their "model." prefix, all or none.
// NotFound names a tensor that is missing and its shape; InvalidArgument one of the wrong shape,
// with expected and found shape, of a dtype that is no floating-point one, or one that the model
// has no place for. rotary_emb.inv_freq is let be. A tied model may have embed_tokens.weight,
// lm_head.weight, or both; if those differ they are not tied, as transformers has it.
absl::StatusOr<ModelTensors> ResolveTensors(const ModelConfig& config,
                                            const Checkpoint& checkpoint);

}  // namespace ferrite

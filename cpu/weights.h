// A model's weights, packed for the CPU.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "cpu/linear.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"

namespace ferrite {

struct CpuLayerWeights {
  std::vector<float> input_norm;  // [hidden]
  Linear qkv;                     // [q_size + 2 kv_size, hidden]: q, k and v stacked
  Linear o;                       // [hidden, q_size]
  std::vector<float> post_norm;   // [hidden]
  Linear gate_up;                 // [2 intermediate, hidden]: gate and up stacked
  Linear down;                    // [hidden, intermediate]
};

struct CpuWeights {
  AlignedBuffer<std::byte> embed;  // [vocab, hidden] in the compute type; empty if tied
  std::vector<CpuLayerWeights> layers;
  std::vector<float> final_norm;  // [hidden]
  Linear lm_head;                 // [vocab, hidden]; also the embedding if tied
  int64_t num_parameters = 0;     // a tied lm_head counts once
};

// Packs every tensor that `config` calls for. NotFound or InvalidArgument names a tensor that is
// missing or misshapen; InvalidArgument one that the model has no place for.
absl::StatusOr<CpuWeights> LoadCpuWeights(const ModelConfig& config, const Checkpoint& checkpoint,
                                          MatmulRuntime* runtime);

// out[hidden] = the embedding of `token`.
void ReadEmbedding(const CpuWeights& weights, ComputeType type, int32_t token,
                   std::span<float> out);

}  // namespace ferrite

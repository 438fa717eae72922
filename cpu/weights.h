// A model's weights, packed for the CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "cpu/aligned_buffer.h"
#include "cpu/matmul_engine.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"

namespace ferrite {

struct CpuLayerWeights {
  std::vector<float> input_norm;       // [hidden]
  std::unique_ptr<CpuLinear> qkv;      // [q_size + 2 kv_size, hidden]: q, k and v stacked
  std::vector<float> q_norm;           // [head_dim]; empty if the model has none
  std::vector<float> k_norm;           // [head_dim]; empty if the model has none
  std::unique_ptr<CpuLinear> o;        // [hidden, q_size]
  std::vector<float> post_norm;        // [hidden]
  std::unique_ptr<CpuLinear> gate_up;  // [2 intermediate, hidden]: gate and up stacked
  std::unique_ptr<CpuLinear> down;     // [hidden, intermediate]
};

struct CpuWeights {
  AlignedBuffer<std::byte> embed;  // [vocab, hidden] in the compute type; empty if tied
  std::vector<CpuLayerWeights> layers;
  std::vector<float> final_norm;       // [hidden]
  std::unique_ptr<CpuLinear> lm_head;  // [vocab, hidden]; also the embedding if tied
  int64_t num_parameters = 0;          // a tied lm_head counts once
};

// Packs every tensor that `config` calls for, in `type`. Errors are those of ResolveTensors and
// MatmulEngine::Pack.
absl::StatusOr<CpuWeights> LoadCpuWeights(const ModelConfig& config, const Checkpoint& checkpoint,
                                          ComputeType type, MatmulEngine* engine);

// out[hidden] = the embedding of `token`.
void ReadEmbedding(const CpuWeights& weights, ComputeType type, int32_t token,
                   std::span<float> out);

}  // namespace ferrite

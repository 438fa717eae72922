// The rotation frequencies of rotary position embedding, https://arxiv.org/abs/2104.09864, and of
// its stretched variants.
#pragma once

#include <span>
#include <vector>

#include "engine/model/model_config.h"

namespace ferrite {

// How far each pair of a head's elements turns with every position.
struct RopeFrequencies {
  std::vector<float> inverse;     // [head_dim / 2] radians a position
  float attention_factor = 1.0f;  // cos and sin are multiplied by it
};

// In single precision where transformers' modeling_rope_utils.py is, so that long positions turn by
// the same angles.
RopeFrequencies ComputeRopeFrequencies(const RopeConfig& rope, int32_t head_dim);

// cosines[i] and sines[i] [head_dim / 2] of `position`, times the attention factor.
void ComputeRotation(const RopeFrequencies& frequencies, int64_t position, std::span<float> cosines,
                     std::span<float> sines);

}  // namespace ferrite

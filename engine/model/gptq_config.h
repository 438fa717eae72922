// How a GPTQ checkpoint was quantised, as the tools that write one say it (AutoGPTQ, GPTQModel).
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/model/json_reader.h"

namespace ferrite {

struct GptqConfig {
  int32_t group_size = -1;  // inputs that share a scale and a zero point: 32, 64, 128; -1: all
  // Act-order: inputs were quantised in the order of their importance, so that g_idx, not their
  // place, says which group they belong to.
  bool act_order = false;
  bool symmetric = true;  // zero points are 8, whether or not there is a tensor of them
  // Zero points are stored less one (checkpoint_format "gptq", the older and the default one),
  // rather than as they are ("gptq_v2").
  bool zeros_less_one = true;

  bool operator==(const GptqConfig&) const = default;
};

// Reads config.json's quantization_config, or the whole of quantize_config.json. Unimplemented
// names a method other than GPTQ, bits other than 4, a group size, checkpoint format, packing or
// per-layer override that is not read, and any key that is not known to leave the weights alone;
// InvalidArgument a value of the wrong type.
absl::StatusOr<GptqConfig> ReadGptqConfig(const JsonObject& object);

}  // namespace ferrite

// The rotary embedding that a config.json asks for, in either spelling.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/model/json_reader.h"
#include "engine/model/model_config.h"

namespace ferrite {

// Reads rope_theta with rope_scaling, as older files have them, or rope_parameters, as transformers
// 5 writes; what is said twice must agree. InvalidArgument names a key that is missing or out of
// range, Unimplemented a type or key that is not supported.
absl::StatusOr<RopeConfig> ReadRopeConfig(const JsonObject& file, int32_t max_position_embeddings);

}  // namespace ferrite

// Makes the backends that the config asks for.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"
#include "server/config.h"

namespace ferrite {

// One backend per entry of config.workers, loaded from `checkpoint`, which is not needed
// afterwards.
absl::StatusOr<std::vector<std::unique_ptr<Backend>>> CreateBackends(const ServerConfig& config,
                                                                     const ModelConfig& model,
                                                                     const Checkpoint& checkpoint);

}  // namespace ferrite

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
// afterwards. FailedPrecondition, saying what to do, for a backend.type that this build or machine
// cannot run; the backends' own errors name the entry.
absl::StatusOr<std::vector<std::unique_ptr<Backend>>> CreateBackends(const ServerConfig& config,
                                                                     const ModelConfig& model,
                                                                     const Checkpoint& checkpoint);

// FailedPrecondition, naming the entry, its value and the count, if a worker's device is not one of
// `num_gpus`.
absl::Status CheckWorkerDevices(const std::vector<WorkerConfig>& workers, int num_gpus);

}  // namespace ferrite

#include "server/backend_factory.h"

#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cpu/cpu_backend.h"
#include "engine/status_macros.h"

#if FERRITE_WITH_CUDA
#include "cuda/cuda_backend.h"
#include "cuda/device.h"
#endif

namespace ferrite {
namespace {

using BackendOr = absl::StatusOr<std::unique_ptr<Backend>>;

BackendOr CreateCpu(const ServerConfig& config, const ModelConfig& model,
                    const Checkpoint& checkpoint) {
  CpuBackendOptions options;
  options.compute_type = config.backend.compute_type;
  options.deterministic = config.backend.deterministic;
  options.num_threads = config.backend.threads;
  options.num_blocks = config.kv_cache.blocks;
  options.kv_pool_bytes = config.kv_cache.memory_mb << 20;
  options.block_size = config.kv_cache.block_size;
  options.max_sequences = config.scheduler.max_running;
  options.max_step_tokens = config.scheduler.max_step_tokens;
  options.max_sequence_length = config.scheduler.max_context;
  return CpuBackend::Create(model, checkpoint, options);
}

#if FERRITE_WITH_CUDA
absl::StatusOr<int> CountGpus() { return DeviceCount(); }

BackendOr CreateCuda(const ServerConfig& config, const ModelConfig& model,
                     const Checkpoint& checkpoint, int32_t device) {
  CudaBackendOptions options;
  options.device = device;
  options.compute_type = config.backend.compute_type;
  options.deterministic = config.backend.deterministic;
  options.gpu_memory_fraction = config.backend.gpu_memory_fraction;
  options.num_blocks = config.kv_cache.blocks;
  options.block_size = config.kv_cache.block_size;
  options.max_sequences = config.scheduler.max_running;
  options.max_step_tokens = config.scheduler.max_step_tokens;
  options.max_sequence_length = config.scheduler.max_context;
  return CudaBackend::Create(model, checkpoint, options);
}
#else
absl::StatusOr<int> CountGpus() {
  return absl::FailedPreconditionError(
      "this server was built without it (the cuda preset has it); set backend.type to cpu, or take "
      "a build with CUDA");
}

BackendOr CreateCuda(const ServerConfig&, const ModelConfig&, const Checkpoint&, int32_t) {
  return CountGpus().status();
}
#endif

// Whether every worker has its GPU, before any of them loads weights.
absl::Status CheckGpus(const std::vector<WorkerConfig>& workers) {
  const absl::StatusOr<int> count = CountGpus();
  if (!count.ok()) {
    return absl::Status(count.status().code(),
                        absl::StrCat("backend.type is cuda: ", count.status().message()));
  }
  return CheckWorkerDevices(workers, *count);
}

}  // namespace

absl::Status CheckWorkerDevices(const std::vector<WorkerConfig>& workers, int num_gpus) {
  for (size_t i = 0; i < workers.size(); ++i) {
    if (const int32_t device = workers[i].devices[0]; device >= num_gpus) {
      return absl::FailedPreconditionError(absl::StrCat(
          "workers[", i, "].devices[0] is ", device, "; this process sees ", num_gpus,
          num_gpus == 1 ? " GPU, number 0" : absl::StrCat(" GPUs, 0 to ", num_gpus - 1)));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::unique_ptr<Backend>>> CreateBackends(const ServerConfig& config,
                                                                     const ModelConfig& model,
                                                                     const Checkpoint& checkpoint) {
  std::vector<BackendOr> created;
  if (config.backend.type == "cpu") {
    for (size_t i = 0; i < config.workers.size(); ++i) {
      created.push_back(CreateCpu(config, model, checkpoint));
    }
  } else {  // every GPU loads its own copy, all at once
    RETURN_IF_ERROR(CheckGpus(config.workers));
    created.resize(config.workers.size());
    std::vector<std::thread> loaders;
    for (size_t i = 0; i < config.workers.size(); ++i) {
      loaders.emplace_back([&, i] {
        created[i] = CreateCuda(config, model, checkpoint, config.workers[i].devices[0]);
      });
    }
    for (std::thread& loader : loaders) {
      loader.join();
    }
  }
  std::vector<std::unique_ptr<Backend>> backends;
  for (size_t i = 0; i < created.size(); ++i) {
    if (!created[i].ok()) {
      return absl::Status(created[i].status().code(),
                          absl::StrCat("workers[", i, "]: ", created[i].status().message()));
    }
    backends.push_back(*std::move(created[i]));
  }
  return backends;
}

}  // namespace ferrite

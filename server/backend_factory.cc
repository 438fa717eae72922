#include "server/backend_factory.h"

#include <utility>

#include "cpu/cpu_backend.h"
#include "engine/status_macros.h"

namespace ferrite {

absl::StatusOr<std::vector<std::unique_ptr<Backend>>> CreateBackends(const ServerConfig& config,
                                                                     const ModelConfig& model,
                                                                     const Checkpoint& checkpoint) {
  CpuBackendOptions options;
  options.compute_type = config.backend.compute_type;
  options.num_threads = config.backend.threads;
  options.num_blocks = config.kv_cache.blocks;
  options.kv_pool_bytes = config.kv_cache.memory_mb << 20;
  options.block_size = config.kv_cache.block_size;
  options.max_sequences = config.scheduler.max_running;
  options.max_step_tokens = config.scheduler.max_step_tokens;
  options.max_sequence_length = config.scheduler.max_context;

  std::vector<std::unique_ptr<Backend>> backends;
  for (size_t i = 0; i < config.workers.size(); ++i) {
    ASSIGN_OR_RETURN(std::unique_ptr<CpuBackend> backend,
                     CpuBackend::Create(model, checkpoint, options));
    backends.push_back(std::move(backend));
  }
  return backends;
}

}  // namespace ferrite

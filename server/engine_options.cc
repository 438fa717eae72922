#include "server/engine_options.h"

namespace ferrite {

EngineOptions ToEngineOptions(const ServerConfig& config) {
  const ServerConfig::Scheduler& scheduler = config.scheduler;
  EngineOptions options;
  options.stuck_step_seconds = config.server.stuck_step_seconds;
  options.refuse_late = scheduler.refuse_late;
  options.prefix_caching = config.kv_cache.prefix_caching;
  options.scheduler.aging_seconds = scheduler.aging_seconds;
  options.scheduler.max_running = scheduler.max_running;
  options.scheduler.max_step_tokens = scheduler.max_step_tokens;
  options.scheduler.mixed_step_tokens = scheduler.mixed_step_tokens;
  options.admission.max_waiting_requests = scheduler.max_waiting;
  options.admission.max_waiting_tokens = scheduler.max_waiting_tokens;
  return options;
}

}  // namespace ferrite

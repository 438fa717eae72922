#include "server/control_service.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "engine/status_macros.h"
#include "server/unary_call.h"

namespace ferrite {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

double UsedShare(int64_t free, int64_t total) {
  return total == 0 ? 0 : 1 - static_cast<double>(free) / static_cast<double>(total);
}

void FillWorkerLoad(const WorkerLoad& load, v1::WorkerLoad* worker) {
  worker->set_requests_running(load.requests_running);
  worker->set_requests_waiting(load.requests_waiting);
  worker->set_kv_blocks_free(load.kv_blocks_free);
  worker->set_kv_blocks_total(load.kv_blocks_total);
  worker->set_kv_cache_usage(UsedShare(load.kv_blocks_free, load.kv_blocks_total));
  worker->set_tokens_outstanding(load.tokens_outstanding);
  worker->set_steps_total(load.steps);
  worker->set_preemptions_total(load.preemptions);
  worker->set_seconds_until_free_slot(load.seconds_until_slot);
}

}  // namespace

grpc::ServerUnaryReactor* ControlService::GetServerInfo(grpc::CallbackServerContext* call,
                                                        const grpc::ByteBuffer* request,
                                                        grpc::ByteBuffer* response) {
  return AnswerUnary<v1::GetServerInfoRequest, v1::GetServerInfoResponse>(
      *authenticator_, call_log_, Rpc::kGetServerInfo, call, *request, response,
      [this](const v1::GetServerInfoRequest&, v1::GetServerInfoResponse* answer) {
        FillServerInfo(answer);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* ControlService::GetModelInfo(grpc::CallbackServerContext* call,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  const auto serve = [this](const v1::GetModelInfoRequest& wire,
                            v1::GetModelInfoResponse* answer) -> absl::Status {
    RETURN_IF_ERROR(CheckModelName(wire.has_model(), wire.model(), *context_.model));
    FillModelInfo(answer);
    return absl::OkStatus();
  };
  return AnswerUnary<v1::GetModelInfoRequest, v1::GetModelInfoResponse>(
      *authenticator_, call_log_, Rpc::kGetModelInfo, call, *request, response, serve);
}

grpc::ServerUnaryReactor* ControlService::GetLoad(grpc::CallbackServerContext* call,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  return AnswerUnary<v1::GetLoadRequest, v1::GetLoadResponse>(
      *authenticator_, call_log_, Rpc::kGetLoad, call, *request, response,
      [this](const v1::GetLoadRequest&, v1::GetLoadResponse* answer) {
        FillLoad(answer);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* ControlService::Abort(grpc::CallbackServerContext* call,
                                                const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) {
  return AnswerUnary<v1::AbortRequest, v1::AbortResponse>(
      *authenticator_, call_log_, Rpc::kAbort, call, *request, response,
      [this](const v1::AbortRequest& wire, v1::AbortResponse*) {
        return engine_->Abort(wire.request_id());
      });
}

void ControlService::FillServerInfo(v1::GetServerInfoResponse* answer) const {
  answer->set_version(FERRITE_VERSION);
  answer->set_compiler("g++ " __VERSION__);
  answer->set_uptime_seconds(SecondsBetween(process_start_, Clock::now()));
  answer->set_startup_seconds(startup_seconds_.load());
  answer->set_max_message_bytes(max_message_bytes_);
  answer->set_fingerprint(context_.model->fingerprint);
  answer->set_deterministic(true);
  for (size_t i = 0; i < engine_->num_workers(); ++i) {
    const BackendInfo& info = engine_->worker_info(i);
    const SchedulerOptions& scheduler = engine_->worker_options(i);
    answer->set_deterministic(answer->deterministic() && info.deterministic);
    v1::WorkerInfo* const worker = answer->add_workers();
    worker->set_index(static_cast<int32_t>(i));
    worker->set_device(info.device);
    worker->set_compute_type(info.compute_type);
    worker->set_kv_blocks(info.num_blocks);
    worker->set_kv_block_size(info.block_size);
    worker->set_max_running(scheduler.max_running);
    worker->set_max_step_tokens(scheduler.max_step_tokens);
    worker->set_mixed_step_tokens(scheduler.mixed_step_tokens);
  }
}

void ControlService::FillModelInfo(v1::GetModelInfoResponse* answer) const {
  const ServedModel& model = *context_.model;
  const ModelConfig& config = model.config;
  answer->set_name(model.name);
  answer->set_architecture(config.architecture);
  answer->set_vocab_size(config.vocab_size);
  answer->set_context_length(engine_->context_length());
  answer->set_num_layers(config.num_layers);
  answer->set_hidden_size(config.hidden_size);
  answer->set_num_heads(config.num_heads);
  answer->set_num_kv_heads(config.num_kv_heads);
  answer->set_head_dim(config.head_dim);
  answer->set_num_parameters(engine_->worker_info(0).num_parameters);
  if (config.bos_token_id.has_value()) {
    answer->set_bos_token_id(*config.bos_token_id);
  }
  const std::vector<TokenId>& ends = model.end_token_ids();
  answer->mutable_eos_token_ids()->Assign(ends.begin(), ends.end());
  const ServerConfig::Defaults& defaults = context_.defaults;
  answer->set_default_temperature(
      model.generation.temperature.value_or(static_cast<float>(defaults.temperature)));
  answer->set_default_top_k(model.generation.top_k.value_or(defaults.top_k));
  answer->set_default_top_p(model.generation.top_p.value_or(static_cast<float>(defaults.top_p)));
  answer->set_default_min_p(model.generation.min_p.value_or(static_cast<float>(defaults.min_p)));
}

void ControlService::FillLoad(v1::GetLoadResponse* answer) const {
  answer->set_draining(draining_.load());
  answer->set_slow_readers_total(write_watch_->num_cancelled());
  const std::vector<WorkerLoad> loads = engine_->load();
  int64_t blocks = 0, blocks_free = 0;
  double soonest = kNever;
  for (size_t i = 0; i < loads.size(); ++i) {
    const WorkerLoad& load = loads[i];
    const bool healthy = engine_->WorkerHealth(i).ok();
    FillWorkerLoad(load, answer->add_workers());
    answer->mutable_workers(static_cast<int>(i))->set_index(static_cast<int32_t>(i));
    answer->mutable_workers(static_cast<int>(i))->set_healthy(healthy);
    answer->set_requests_running(answer->requests_running() + load.requests_running);
    answer->set_requests_waiting(answer->requests_waiting() + load.requests_waiting);
    blocks += load.kv_blocks_total;
    blocks_free += load.kv_blocks_free;
    if (healthy) soonest = std::min(soonest, load.seconds_until_slot);
  }
  answer->set_kv_cache_usage(UsedShare(blocks_free, blocks));
  answer->set_seconds_until_free_slot(soonest);
}

}  // namespace ferrite

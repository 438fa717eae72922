#include "cuda/cuda_backend.h"

#include <cublasLt.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cuda/cuda_status.h"
#include "cuda/device.h"
#include "cuda/memory_plan.h"
#include "engine/model/model_tensors.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

absl::StatusOr<GpuType> ChooseType(const std::string& wanted, const Checkpoint& checkpoint) {
  if (wanted == "fp16") {
    return GpuType::kFp16;
  }
  if (wanted == "bf16") {
    return GpuType::kBf16;
  }
  if (wanted == "auto") {
    return checkpoint.IsMostlyBf16() ? GpuType::kBf16 : GpuType::kFp16;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("compute_type is \"", wanted, "\"; a GPU has auto, fp16 and bf16"));
}

absl::Status CheckOptions(const CudaBackendOptions& options, const ModelConfig& config) {
  const struct {
    const char* name;
    int64_t value;
    int64_t least;
    int64_t most;
  } bounds[] = {
      {"num_blocks", options.num_blocks, 0, INT32_MAX},
      {"block_size", options.block_size, 1, 1 << 12},
      {"max_sequences", options.max_sequences, 1, 1 << 12},
      {"max_step_tokens", options.max_step_tokens, options.max_sequences, 1 << 20},
      {"max_sequence_length", options.max_sequence_length, 0, config.max_position_embeddings}};
  for (const auto& bound : bounds) {
    if (bound.value < bound.least || bound.value > bound.most) {
      return absl::InvalidArgumentError(absl::StrCat(bound.name, " is ", bound.value, ", not in [",
                                                     bound.least, ", ", bound.most, "]"));
    }
  }
  return absl::OkStatus();
}

// Sets how many KV blocks the cache has: as configured, or what fits, but no more than all
// sequences at their longest can use; and what the memory is for.
absl::Status PlanKvBlocks(const ModelConfig& config, int64_t weight_bytes, bool quantized,
                          const DeviceInfo& device, const CudaBackendOptions& options,
                          BackendInfo* backend) {
  const BackendInfo& info = *backend;
  // What CUDA takes for a captured graph, a kernel at a time; measured, and rounded up.
  constexpr int64_t kGraphKernelBytes = 16 << 10;
  const int64_t kernels = int64_t{8} * config.num_layers + 8;
  const int64_t blocks_per_slot =
      (int64_t{info.max_sequence_length} + info.block_size - 1) / info.block_size;
  MemoryRequest request;
  request.total = device.total_bytes;
  request.free = device.free_bytes;
  request.gpu_memory_fraction = options.gpu_memory_fraction;
  request.weights = weight_bytes;
  request.workspace =
      GpuForward::WorkspaceBytes(config, info, quantized, device.num_multiprocessors);
  request.activations = GpuForward::ActivationBytes(config, info) + SlotAdjustments::Bytes(info);
  request.graphs = options.graphs
                       ? static_cast<int64_t>(DecodeGraphs::Sizes(info.max_sequences).size()) *
                             kernels * kGraphKernelBytes
                       : 0;
  request.kv_block = KvBlockBytes(config, info.block_size);
  request.min_blocks = options.num_blocks > 0 ? options.num_blocks : 1;
  request.max_blocks =
      options.num_blocks > 0 ? options.num_blocks : blocks_per_slot * info.max_sequences;
  // slot_mapping counts the cache's rows in 32 bits.
  request.max_blocks = std::min<int64_t>(request.max_blocks, INT32_MAX / info.block_size);
  ASSIGN_OR_RETURN(const MemoryPlan plan, PlanMemory(request));
  backend->num_blocks = plan.num_blocks;
  backend->device_memory = {{"weights", request.weights},
                            {"workspace", request.workspace},
                            {"activations", request.activations},
                            {"graphs", request.graphs},
                            {"kv_cache", plan.kv_cache}};
  return absl::OkStatus();
}

GpuSamplingParams ToGpu(const SamplingParams& params) {
  GpuSamplingParams gpu;
  gpu.temperature = params.temperature;
  gpu.top_k = params.top_k;
  gpu.top_p = params.top_p;
  gpu.min_p = params.min_p;
  gpu.seed = params.seed;
  gpu.sample_index = params.sample_index;
  gpu.min_new_tokens = params.min_new_tokens;
  gpu.num_logprobs = params.num_logprobs;
  gpu.adjusts = params.adjusts_logits();
  gpu.counts_tokens = params.counts_tokens();
  gpu.bars_tokens = !params.allowed_token_ids.empty() || !params.banned_token_ids.empty();
  gpu.num_biases = static_cast<int32_t>(params.logit_bias.size());
  gpu.repetition_penalty = params.repetition_penalty;
  gpu.frequency_penalty = params.frequency_penalty;
  gpu.presence_penalty = params.presence_penalty;
  gpu.num_end_tokens = static_cast<int32_t>(params.end_token_ids.size());
  std::copy(params.end_token_ids.begin(), params.end_token_ids.end(), gpu.end_token_ids);
  return gpu;
}

}  // namespace

CudaBackend::CudaBackend(const BackendInfo& info, Stream stream)
    : info_(info), stream_(std::move(stream)), slots_(info) {}

// The graphs and buffers die after this, when nothing runs any more.
CudaBackend::~CudaBackend() { (void)stream_.Synchronize(); }

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Create(
    const ModelConfig& config, const Checkpoint& checkpoint, const CudaBackendOptions& options) {
  ASSIGN_OR_RETURN(const GpuType type, ChooseType(options.compute_type, checkpoint));
  ASSIGN_OR_RETURN(const ModelTensors tensors, ResolveTensors(config, checkpoint));
  const GpuWeightOptions weight_options{.type = type, .plan = {.fused_int4 = options.fused_int4}};
  return Build(config, tensors, tensors.lm_head == nullptr, weight_options, options,
               [&](const GpuWeightOptions& final_options, const Stream& stream) {
                 return TransformerGpuWeights::Create(config, tensors, final_options, stream);
               });
}

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::CreateRandom(
    const ModelConfig& config, GpuType type, const CudaBackendOptions& options,
    const RandomInt4& int4) {
  ModelTensors tensors;
  tensors.layers.resize(static_cast<size_t>(config.num_layers));
  const GpuWeightOptions weight_options{.type = type,
                                        .plan = {.fused_int4 = options.fused_int4, .random = int4}};
  return Build(config, tensors, config.tie_word_embeddings, weight_options, options,
               [&](const GpuWeightOptions& final_options, const Stream& stream) {
                 return TransformerGpuWeights::Random(config, final_options, /*seed=*/1, stream);
               });
}

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Build(
    const ModelConfig& config, const ModelTensors& tensors, bool tied,
    GpuWeightOptions weight_options, const CudaBackendOptions& options, const LoadWeights& load) {
  RETURN_IF_ERROR(CheckOptions(options, config));
  ASSIGN_OR_RETURN(const DeviceInfo device, QueryDevice(options.device));
  ASSIGN_OR_RETURN(Stream stream, Stream::Create(options.device));
  RETURN_IF_ERROR(stream.MakeDeviceCurrent());
  BackendInfo info{.device = absl::StrCat("cuda:", options.device),
                   .compute_type = weight_options.type == GpuType::kFp16 ? "fp16" : "bf16",
                   .num_blocks = options.num_blocks,
                   .block_size = options.block_size,
                   .max_sequences = options.max_sequences,
                   .max_step_tokens = options.max_step_tokens,
                   .max_sequence_length = options.max_sequence_length > 0
                                              ? options.max_sequence_length
                                              : config.max_position_embeddings,
                   .vocab_size = config.vocab_size,
                   .hidden_size = config.hidden_size,
                   .max_end_token_ids = GpuSamplingParams::kMaxEndTokens,
                   .adjusts_logits = true,
                   .scores_tokens = true,
                   .pools = true,
                   .num_parameters = 0,
                   .platform = absl::StrCat(device.name, ", cuBLAS ", cublasLtGetVersion()),
                   .deterministic = options.deterministic,
                   .pipeline_depth = 2};
  weight_options.max_positions = info.max_sequence_length;
  weight_options.progress = options.progress;
  ASSIGN_OR_RETURN(const int64_t weight_bytes,
                   TransformerGpuWeights::Footprint(config, tensors, tied, weight_options));
  const bool quantized = IsQuantized(tensors) || weight_options.plan.random.group_size != 0;
  // Keeps the time between tokens at p99 within twice its median (docs/performance.md).
  constexpr int32_t kMixedStepTokensInt4 = 128;
  if (quantized) {
    info.mixed_step_tokens = kMixedStepTokensInt4;
  }
  RETURN_IF_ERROR(PlanKvBlocks(config, weight_bytes, quantized, device, options, &info));
  std::unique_ptr<CudaBackend> backend(new CudaBackend(info, std::move(stream)));
  ASSIGN_OR_RETURN(TransformerGpuWeights weights, load(weight_options, backend->stream_));
  backend->weights_ = std::make_unique<TransformerGpuWeights>(std::move(weights));
  backend->info_.num_parameters = backend->weights_->num_parameters;
  backend->info_.remarks = backend->weights_->int4.ToString();
  ASSIGN_OR_RETURN(backend->forward_, GpuForward::Create(config, backend->info_, *backend->weights_,
                                                         backend->stream_));
  RETURN_IF_ERROR(backend->AllocateSteps());
  RETURN_IF_ERROR(backend->WarmUp());
  if (options.graphs) {
    RETURN_IF_ERROR(backend->graphs_.Capture(*backend->forward_, info.max_sequences,
                                             backend->flights_[0].inputs.data(),
                                             backend->inputs_.data(), backend->stream_));
  }
  RETURN_IF_ERROR(backend->stream_.Synchronize());
  return backend;
}

absl::Status CudaBackend::AllocateSteps() {
  const int device = stream_.device();
  const StepShape most{.tokens = info_.max_step_tokens,
                       .sequences = info_.max_sequences,
                       .samples = info_.max_sequences,
                       .scored = info_.max_step_tokens,
                       .pooled = info_.max_sequences};
  // Every entry of every block table, at most: a step names none twice.
  const int64_t changes = int64_t{info_.max_sequences} * forward_->blocks_per_slot();
  ASSIGN_OR_RETURN(inputs_, DeviceBuffer<int32_t>::Create(device, most.words(), "step inputs"));
  ASSIGN_OR_RETURN(table_changes_,
                   DeviceBuffer<TableChange>::Create(device, changes, "block table changes"));
  ASSIGN_OR_RETURN(params_, DeviceBuffer<GpuSamplingParams>::Create(device, info_.max_sequences,
                                                                    "sampling parameters"));
  ASSIGN_OR_RETURN(param_slots_,
                   DeviceBuffer<int32_t>::Create(device, info_.max_sequences, "step inputs"));
  ASSIGN_OR_RETURN(adjustments_, SlotAdjustments::Create(info_, stream_));
  for (int i = 0; i < info_.pipeline_depth; ++i) {
    ASSIGN_OR_RETURN(Flight flight, Flight::Create(info_, most, changes, device));
    flights_.push_back(std::move(flight));
  }
  return absl::OkStatus();
}

// CUDA loads a kernel when it is first launched, and that waits for the device.
absl::Status CudaBackend::WarmUp() {
  RETURN_IF_ERROR(forward_->WarmUp());
  // One step of everything: a decode and a prompt, if there is room for two sequences, both of the
  // one token that is the cache's first row.
  const int32_t size = std::min({2, info_.max_sequences, info_.max_step_tokens});
  const StepShape shape{
      .tokens = size, .sequences = size, .samples = size, .scored = 1, .pooled = 1};
  const StepInputs host = StepInputs::At(flights_[0].inputs.data(), shape);
  std::fill_n(flights_[0].inputs.data(), shape.words(), 0);
  for (int32_t i = 0; i < size; ++i) {
    host.cu_seqlens[i + 1] = i + 1;
    host.kv_lens[i] = 1;
    host.input_rows[i] = -1;
    host.row_slots[i] = -1;
  }
  host.pool_items[0] = {
      .first_token = 0, .num_tokens = 1, .slot = 0, .adds = 0, .out = 0, .divisor = 1};
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(inputs_.data(), flights_[0].inputs.data(),
                                               shape.words() * sizeof(int32_t),
                                               cudaMemcpyHostToDevice, stream_.get()));
  const GpuStep step{.inputs = StepInputs::At(inputs_.data(), shape),
                     .shape = shape,
                     .num_decodes = size - 1,
                     .max_pooled_tokens = 1};
  RETURN_IF_ERROR(forward_->Enqueue(step));
  RETURN_IF_ERROR(forward_->EnqueueAdjusted(step, adjustments_->state()));
  RETURN_IF_ERROR(forward_->EnqueueLogprobs(step));
  return stream_.Synchronize();
}

absl::Status CudaBackend::Launch(const Batch& batch) {
  if (launched_ - waited_ == flights_.size()) {
    return absl::FailedPreconditionError(
        absl::StrCat("step ", batch.step, " launched with two steps outstanding"));
  }
  RETURN_IF_ERROR(stream_.MakeDeviceCurrent());
  RETURN_IF_ERROR(slots_.Apply(batch));
  RETURN_IF_ERROR(slots_.Check(batch, last_samples_));
  const auto index = static_cast<int>(launched_ % flights_.size());
  Flight& flight = flights_[index];
  flight.Note(batch, slots_);
  RETURN_IF_ERROR(UploadChanges(batch, &flight));
  RETURN_IF_ERROR(adjustments_->Assign(batch.slot_assignments, index));
  if (!batch.empty()) {
    RETURN_IF_ERROR(EnqueueStep(batch, flight));
  }
  RETURN_IF_ERROR(EnqueueCopies(flight));
  RETURN_IF_ERROR(flight.done->Record(stream_));
  last_samples_ = flight.num_samples;
  ++launched_;
  return absl::OkStatus();
}

absl::Status CudaBackend::UploadChanges(const Batch& batch, Flight* flight) {
  const auto num_params = static_cast<int32_t>(batch.slot_assignments.size());
  const auto num_tables = static_cast<int32_t>(batch.block_table_changes.size());
  if (num_params == 0 && num_tables == 0) {
    return absl::OkStatus();
  }
  if (num_params > info_.max_sequences || num_tables > flight->table_changes.size()) {
    return absl::InternalError(absl::StrCat("step ", batch.step, ": ", num_params,
                                            " slot assignments and ", num_tables,
                                            " block table changes are more than there are slots"));
  }
  for (int32_t i = 0; i < num_params; ++i) {
    const SlotAssignment& assignment = batch.slot_assignments[i];
    if (assignment.params->end_token_ids.size() > GpuSamplingParams::kMaxEndTokens) {
      return absl::InternalError(absl::StrCat(
          "step ", batch.step, ": a sequence has ", assignment.params->end_token_ids.size(),
          " end tokens; the most are ", GpuSamplingParams::kMaxEndTokens));
    }
    flight->params.data()[i] = ToGpu(*assignment.params);
    flight->param_slots.data()[i] = assignment.slot.value;
  }
  for (int32_t i = 0; i < num_tables; ++i) {
    const BlockTableChange& change = batch.block_table_changes[i];
    flight->table_changes.data()[i] = {change.slot.value, change.index, change.block.value};
  }
  const auto copy = [this](void* to, const void* from, size_t bytes) {
    return bytes == 0 ? cudaSuccess
                      : cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_.get());
  };
  FERRITE_RETURN_IF_CUDA_ERROR(
      copy(params_.data(), flight->params.data(), num_params * sizeof(GpuSamplingParams)));
  FERRITE_RETURN_IF_CUDA_ERROR(
      copy(param_slots_.data(), flight->param_slots.data(), num_params * sizeof(int32_t)));
  FERRITE_RETURN_IF_CUDA_ERROR(
      copy(table_changes_.data(), flight->table_changes.data(), num_tables * sizeof(TableChange)));
  const SlotChanges changes{.tables = table_changes_.data(),
                            .num_tables = num_tables,
                            .params = params_.data(),
                            .param_slots = param_slots_.data(),
                            .num_params = num_params};
  return CudaStatus(ApplySlotChanges(changes, forward_->blocks_per_slot(), forward_->block_tables(),
                                     forward_->params(), stream_.get()),
                    "ApplySlotChanges");
}

absl::Status CudaBackend::EnqueueStep(const Batch& batch, const Flight& flight) {
  const DecodeGraph* graph = graphs_.Find(flight.shape());
  const StepShape shape = graph != nullptr ? graph->step.shape : flight.shape();
  FillStepInputs(batch, flight.pool_items, shape, StepInputs::At(flight.inputs.data(), shape));
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(inputs_.data(), flight.inputs.data(),
                                               shape.words() * sizeof(int32_t),
                                               cudaMemcpyHostToDevice, stream_.get()));
  if (graph != nullptr) {
    ++counters_.graph_steps;
    RETURN_IF_ERROR(graph->graph.Launch(stream_));
    return EnqueueOutputs(graph->step, flight);
  }
  ++counters_.eager_steps;
  GpuStep step{.inputs = StepInputs::At(inputs_.data(), shape),
               .shape = shape,
               .num_decodes = 0,
               .max_pooled_tokens = flight.max_pooled_tokens};
  while (step.num_decodes < shape.sequences &&
         batch.cu_seqlens[step.num_decodes + 1] == step.num_decodes + 1) {
    ++step.num_decodes;
  }
  RETURN_IF_ERROR(forward_->Enqueue(step));
  return EnqueueOutputs(step, flight);
}

// What only some sequences ask for is in no graph.
absl::Status CudaBackend::EnqueueOutputs(const GpuStep& step, const Flight& flight) const {
  if (flight.any_adjusted) {
    RETURN_IF_ERROR(forward_->EnqueueAdjusted(step, adjustments_->state()));
  }
  return flight.any_logprobs ? forward_->EnqueueLogprobs(step) : absl::OkStatus();
}

absl::Status CudaBackend::EnqueueCopies(const Flight& flight) const {
  const auto copy = [this](auto* to, const auto* from, int64_t size) {
    return size == 0 ? cudaSuccess
                     : cudaMemcpyAsync(to, from, size * sizeof(*to), cudaMemcpyDeviceToHost,
                                       stream_.get());
  };
  FERRITE_RETURN_IF_CUDA_ERROR(copy(flight.tokens.data(), forward_->sampled(), flight.num_samples));
  FERRITE_RETURN_IF_CUDA_ERROR(copy(flight.logprobs.data(), forward_->logprobs(),
                                    flight.any_logprobs ? flight.num_samples : 0));
  FERRITE_RETURN_IF_CUDA_ERROR(copy(flight.scores.data(), forward_->scores(),
                                    static_cast<int64_t>(flight.scored_top.size())));
  return CudaStatus(copy(flight.pooled.data(), forward_->pooled(),
                         int64_t{flight.num_pooled} * info_.hidden_size),
                    "cudaMemcpyAsync");
}

absl::Status CudaBackend::Wait(StepResult* result) {
  if (waited_ == launched_) {
    return absl::FailedPreconditionError("no step is outstanding");
  }
  const Flight& flight = flights_[waited_ % flights_.size()];
  ++waited_;
  RETURN_IF_ERROR(flight.done->Synchronize());
  read_samples_ = flight.num_samples;
  flight.Take(info_, result);
  result->replayed = graphs_.Find(flight.shape()) != nullptr;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> CudaBackend::ReadLogits() const {
  if (waited_ != launched_) {
    return absl::FailedPreconditionError("a step is outstanding");
  }
  std::vector<float> logits(static_cast<size_t>(read_samples_) * info_.vocab_size);
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(logits.data(), forward_->logits(),
                                               logits.size() * sizeof(float),
                                               cudaMemcpyDeviceToHost, stream_.get()));
  RETURN_IF_ERROR(stream_.Synchronize());
  return logits;
}

}  // namespace ferrite

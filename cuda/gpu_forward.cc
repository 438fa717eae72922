#include "cuda/gpu_forward.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "cuda/cuda_status.h"
#include "cuda/device.h"
#include "cuda/kernels/embedding.h"
#include "cuda/kernels/prepare_heads.h"
#include "cuda/kernels/rms_norm.h"
#include "cuda/kernels/silu_mul.h"
#include "cuda/kernels/step.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

using Epilogue = Product::Epilogue;

// Up to here gates and ups are kept in fp32, where they stay in the cache of the chip.
constexpr int32_t kMaxPreciseRows = 64;

}  // namespace

GpuForward::GpuForward(const ModelConfig& config, const BackendInfo& info,
                       const TransformerGpuWeights& weights, const Stream& stream,
                       Products products)
    : config_(config),
      info_(info),
      weights_(weights),
      stream_(stream),
      type_(weights.embed_table.type()),
      blocks_per_slot_((info.max_sequence_length + info.block_size - 1) / info.block_size),
      products_(std::move(products)) {}

absl::StatusOr<std::unique_ptr<GpuForward>> GpuForward::Create(const ModelConfig& config,
                                                               const BackendInfo& info,
                                                               const TransformerGpuWeights& weights,
                                                               const Stream& stream) {
  RETURN_IF_ERROR(stream.MakeDeviceCurrent());
  ASSIGN_OR_RETURN(const DeviceInfo device, QueryDevice(stream.device()));
  ASSIGN_OR_RETURN(Products products,
                   Products::Create(weights, std::max(info.max_step_tokens, info.max_sequences),
                                    info.deterministic, stream));
  std::unique_ptr<GpuForward> pass(
      new GpuForward(config, info, weights, stream, std::move(products)));
  pass->num_multiprocessors_ = device.num_multiprocessors;
  if (info.deterministic) {
    RETURN_IF_ERROR(pass->PrepareProducts());
  }
  RETURN_IF_ERROR(pass->Allocate());
  RETURN_IF_ERROR(pass->SizeScratch());
  return pass;
}

absl::Status GpuForward::PrepareProducts() {
  const int32_t tokens = max_tokens();
  for (const LayerWeights& layer : weights_.layers) {
    RETURN_IF_ERROR(
        products_.Prepare(tokens, config_.qk_norm ? Epilogue::kFp32 : Epilogue::kStore, layer.qkv));
    RETURN_IF_ERROR(products_.Prepare(tokens, Epilogue::kAdd, layer.o));
    RETURN_IF_ERROR(products_.Prepare(tokens, Epilogue::kStore, layer.gate_up));
    RETURN_IF_ERROR(products_.Prepare(tokens, Epilogue::kAdd, layer.down));
  }
  return products_.Prepare(info_.max_sequences, Epilogue::kFp32, weights_.lm_head);
}

absl::Status GpuForward::WarmUp() const {
  const LayerWeights& layer = weights_.layers.front();  // layers are mostly alike
  for (const int32_t rows : Products::RowSizes(max_tokens())) {
    RETURN_IF_ERROR(EnqueueQkv(rows, layer, config_.qk_norm));
    RETURN_IF_ERROR(AddProduct(rows, attended_.data(), layer.o));
    RETURN_IF_ERROR(EnqueueMlp(rows, layer));
  }
  for (const int32_t rows : Products::RowSizes(info_.max_sequences)) {
    RETURN_IF_ERROR(ProjectRows(/*rows=*/nullptr, rows));
  }
  return absl::OkStatus();
}

absl::Status GpuForward::Enqueue(const GpuStep& step) const {
  const StepInputs& inputs = step.inputs;
  TokenSource tokens{.token_ids = inputs.token_ids};
  if (step.num_decodes == step.shape.tokens) {  // token t is all of sequence t
    tokens.input_rows = inputs.input_rows;
    tokens.sampled = sampled_.data();
  } else {
    FERRITE_RETURN_IF_CUDA_ERROR(ResolveInputs(inputs.input_rows, inputs.cu_seqlens,
                                               step.shape.sequences, sampled_.data(),
                                               inputs.token_ids, stream_.get()));
  }
  FERRITE_RETURN_IF_CUDA_ERROR(GatherEmbeddings(type_, weights_.embed_table.data(), tokens,
                                                step.shape.tokens, config_.hidden_size,
                                                residual_.data(), stream_.get()));
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
    RETURN_IF_ERROR(EnqueueLayer(step, layer));
  }
  if (step.shape.scored > 0) {
    RETURN_IF_ERROR(EnqueueScores(step));
  }
  if (step.shape.pooled > 0) {
    RETURN_IF_ERROR(EnqueuePooling(step));
  }
  if (step.shape.samples == 0) {
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(EnqueueHead(step));
  return EnqueueSampling(step, logits_.data(), step.inputs.row_slots);
}

bool GpuForward::AttentionPrepares(const GpuStep& step) const {
  return !info_.deterministic && step.num_decodes == step.shape.tokens &&
         CanPrepareHeads(config_.head_dim, info_.block_size);
}

bool GpuForward::KeepsRawHeads(const GpuStep& step) const {
  return config_.qk_norm || AttentionPrepares(step);
}

absl::Status GpuForward::EnqueueLayer(const GpuStep& step, int32_t layer) const {
  const LayerWeights& weights = weights_.layers[layer];
  const int32_t rows = step.shape.tokens;
  RETURN_IF_ERROR(EnqueueQkv(rows, weights, KeepsRawHeads(step)));
  RETURN_IF_ERROR(EnqueueAttention(step, layer));
  RETURN_IF_ERROR(AddProduct(rows, attended_.data(), weights.o));
  return EnqueueMlp(rows, weights);
}

absl::Status GpuForward::EnqueueQkv(int32_t rows, const LayerWeights& weights, bool raw) const {
  const float* norm = weights.input_norm.data();
  return raw ? NormedProduct(rows, raw_rows(), norm, weights.qkv, Epilogue::kFp32,
                             raw_heads_.data())
             : NormedProduct(rows, max_tokens(), norm, weights.qkv, Epilogue::kStore, qkv_.data());
}

absl::Status GpuForward::EnqueueMlp(int32_t rows, const LayerWeights& weights) const {
  const float* norm = weights.post_norm.data();
  if (products_.FusesSiluMul(rows, weights.gate_up)) {
    RETURN_IF_ERROR(NormedProduct(rows, max_tokens(), norm, weights.gate_up, Epilogue::kSiluMul,
                                  activated_.data()));
  } else {
    const bool is_fp32 =
        !info_.deterministic && rows <= kMaxPreciseRows && 2 * rows <= max_tokens();
    RETURN_IF_ERROR(NormedProduct(rows, is_fp32 ? max_tokens() / 2 : max_tokens(), norm,
                                  weights.gate_up, is_fp32 ? Epilogue::kFp32 : Epilogue::kStore,
                                  gate_up_.data()));
    FERRITE_RETURN_IF_CUDA_ERROR(SiluMul(type_, gate_up_.data(), is_fp32, rows,
                                         config_.intermediate_size, activated_.data(),
                                         stream_.get()));
  }
  return AddProduct(rows, activated_.data(), weights.down);
}

absl::Status GpuForward::EnqueueAttention(const GpuStep& step, int32_t layer) const {
  const LayerWeights& weights = weights_.layers[layer];
  const StepInputs& inputs = step.inputs;
  const int64_t layer_size = k_cache_.size() / config_.num_layers;
  PrepareHeadsArguments heads;
  heads.type = type_;
  heads.qkv = qkv_.data();
  heads.raw = KeepsRawHeads(step) ? raw_heads_.data() : nullptr;
  heads.positions = inputs.positions;
  heads.slot_mapping = inputs.slot_mapping;
  heads.cosines = weights_.rope_cos.data();
  heads.sines = weights_.rope_sin.data();
  heads.q_norm = weights.q_norm.data();
  heads.k_norm = weights.k_norm.data();
  heads.epsilon = config_.rms_norm_eps;
  heads.num_tokens = step.shape.tokens;
  heads.num_heads = config_.num_heads;
  heads.kv_heads = config_.num_kv_heads;
  heads.head_dim = config_.head_dim;
  heads.block_size = info_.block_size;
  heads.k_cache = k_cache_.data() + layer * layer_size;
  heads.v_cache = v_cache_.data() + layer * layer_size;
  if (!AttentionPrepares(step)) {
    FERRITE_RETURN_IF_CUDA_ERROR(PrepareHeads(heads, stream_.get()));
  }

  AttentionArguments attention;
  attention.type = type_;
  attention.qkv = qkv_.data();
  attention.k_cache = heads.k_cache;
  attention.v_cache = heads.v_cache;
  attention.block_tables = block_tables_.data();
  attention.blocks_per_slot = blocks_per_slot_;
  attention.seq_slots = inputs.seq_slots;
  attention.kv_lens = inputs.kv_lens;
  attention.cu_seqlens = inputs.cu_seqlens;
  attention.num_heads = config_.num_heads;
  attention.kv_heads = config_.num_kv_heads;
  attention.head_dim = config_.head_dim;
  attention.block_size = info_.block_size;
  attention.window = config_.windows[layer];
  attention.scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  // The copy of the step's inputs stands between them and what an earlier step wrote.
  attention.inputs_settled = true;
  attention.prepares = AttentionPrepares(step);
  attention.preparation = {.raw = raw_heads_.data(),
                           .cosines = heads.cosines,
                           .sines = heads.sines,
                           .q_norm = heads.q_norm,
                           .k_norm = heads.k_norm,
                           .epsilon = heads.epsilon};
  attention.out = attended_.data();
  attention.workspace = attention_workspace_.data();
  if (step.num_decodes > 0) {
    attention.num_sequences = step.num_decodes;
    FERRITE_RETURN_IF_CUDA_ERROR(AttendDecodes(attention));
  }
  if (step.num_decodes < step.shape.sequences) {
    attention.first_sequence = step.num_decodes;
    attention.num_sequences = step.shape.sequences - step.num_decodes;
    const int32_t tokens = step.shape.tokens - step.num_decodes;
    FERRITE_RETURN_IF_CUDA_ERROR(info_.deterministic
                                     ? FixedPrefillAttention(attention, tokens, stream_.get())
                                     : PrefillAttention(attention, tokens, stream_.get()));
  }
  return absl::OkStatus();
}

cudaError_t GpuForward::AttendDecodes(const AttentionArguments& attention) const {
  const int32_t sequences = attention.num_sequences;
  if (info_.deterministic) {
    const FixedDecodePlan plan =
        PlanFixedDecodeAttention(sequences, config_.num_heads, config_.num_kv_heads,
                                 config_.head_dim, info_.max_sequence_length);
    return FixedDecodeAttention(attention, plan, attention_counters_.data(), stream_.get());
  }
  const DecodePlan plan =
      PlanDecodeAttention(sequences, config_.num_heads, config_.num_kv_heads, config_.head_dim,
                          info_.max_sequence_length, num_multiprocessors_);
  return DecodeAttention(attention, plan, stream_.get());
}

absl::Status GpuForward::EnqueueHead(const GpuStep& step) const {
  const int32_t rows = step.shape.samples;
  if (step.shape.tokens == 1 && !info_.deterministic) {  // its row is the one that is sampled
    return NormedProduct(rows, info_.max_sequences, weights_.final_norm.data(), weights_.lm_head,
                         Epilogue::kFp32, logits_.data());
  }
  return ProjectRows(step.inputs.sample_tokens, rows);
}

absl::Status GpuForward::ProjectRows(const int32_t* rows, int32_t num_rows) const {
  RmsNormArguments norm;
  norm.type = type_;
  norm.residual = residual_.data();
  norm.rows = rows;
  norm.weight = weights_.final_norm.data();
  norm.epsilon = config_.rms_norm_eps;
  norm.fixed = info_.deterministic;
  norm.num_rows = num_rows;
  norm.hidden = config_.hidden_size;
  norm.out = normed_.data();
  FERRITE_RETURN_IF_CUDA_ERROR(RmsNorm(norm, stream_.get()));
  return products_.Run({.rows = num_rows,
                        .room = info_.max_sequences,
                        .x = normed_.data(),
                        .epilogue = Epilogue::kFp32,
                        .y = logits_.data()},
                       weights_.lm_head);
}

absl::Status GpuForward::EnqueueScores(const GpuStep& step) const {
  const StepInputs& inputs = step.inputs;
  for (int32_t first = 0; first < step.shape.scored; first += info_.max_sequences) {
    const int32_t rows = std::min(info_.max_sequences, step.shape.scored - first);
    RETURN_IF_ERROR(ProjectRows(inputs.scored_tokens + first, rows));
    LogprobsArguments logprobs;
    logprobs.logits = logits_.data();
    logprobs.num_rows = rows;
    logprobs.max_rows = info_.max_sequences;
    logprobs.vocab_size = config_.vocab_size;
    logprobs.wanted = inputs.scored_top + first;
    logprobs.tokens = inputs.scored_next + first;
    logprobs.out = scores_.data() + first;
    logprobs.workspace = logprobs_workspace_.data();
    FERRITE_RETURN_IF_CUDA_ERROR(ComputeLogprobs(logprobs, stream_.get()));
  }
  return absl::OkStatus();
}

absl::Status GpuForward::EnqueuePooling(const GpuStep& step) const {
  PoolArguments pool;
  pool.residual = residual_.data();
  pool.weight = weights_.final_norm.data();
  pool.epsilon = config_.rms_norm_eps;
  pool.hidden = config_.hidden_size;
  pool.items = step.inputs.pool_items;
  pool.num_items = step.shape.pooled;
  pool.max_tokens = step.max_pooled_tokens;
  pool.in_order = info_.deterministic;
  pool.scales = pool_scales_.data();
  pool.sums = pool_sums_.data();
  pool.out = pooled_.data();
  return CudaStatus(Pool(pool, stream_.get()), "Pool");
}

absl::Status GpuForward::EnqueueSampling(const GpuStep& step, const float* logits,
                                         const int32_t* row_slots) const {
  SampleArguments sample;
  sample.logits = logits;
  sample.num_rows = step.shape.samples;
  sample.vocab_size = config_.vocab_size;
  sample.params = params_.data();
  sample.row_slots = row_slots;
  sample.output_indices = step.inputs.output_indices;
  sample.tokens = sampled_.data();
  sample.workspace = sample_workspace_.data();
  return CudaStatus(SampleTokens(sample, stream_.get()), "SampleTokens");
}

absl::Status GpuForward::EnqueueAdjusted(const GpuStep& step, const AdjustState& state) const {
  const int32_t rows = step.shape.samples;
  AdjustLogitsArguments adjust;
  adjust.logits = logits_.data();
  adjust.num_rows = rows;
  adjust.params = params_.data();
  adjust.row_slots = step.inputs.row_slots;
  adjust.state = state;
  adjust.out = adjusted_.data();
  adjust.out_slots = adjusted_slots_.data();
  FERRITE_RETURN_IF_CUDA_ERROR(AdjustLogits(adjust, stream_.get()));
  RETURN_IF_ERROR(EnqueueSampling(step, adjusted_.data(), adjusted_slots_.data()));
  return CudaStatus(CountTokens(sampled_.data(), adjusted_slots_.data(), rows, params_.data(),
                                state, stream_.get()),
                    "CountTokens");
}

absl::Status GpuForward::EnqueueLogprobs(const GpuStep& step) const {
  LogprobsArguments logprobs;
  logprobs.logits = logits_.data();
  logprobs.num_rows = step.shape.samples;
  logprobs.max_rows = info_.max_sequences;
  logprobs.vocab_size = config_.vocab_size;
  logprobs.params = params_.data();
  logprobs.row_slots = step.inputs.row_slots;
  logprobs.tokens = sampled_.data();
  logprobs.out = logprobs_.data();
  logprobs.workspace = logprobs_workspace_.data();
  return CudaStatus(ComputeLogprobs(logprobs, stream_.get()), "ComputeLogprobs");
}

absl::Status GpuForward::NormedProduct(int32_t rows, int32_t room, const float* norm_weight,
                                       const Linear& linear, Epilogue epilogue, void* out) const {
  Product product{.rows = rows, .room = room, .epilogue = epilogue, .y = out};
  if (products_.FusesNorm(rows, linear)) {
    product.residual = residual_.data();
    product.norm_weight = norm_weight;
    product.epsilon = config_.rms_norm_eps;
    return products_.Run(product, linear);
  }
  RmsNormArguments norm;
  norm.type = type_;
  norm.residual = residual_.data();
  norm.weight = norm_weight;
  norm.epsilon = config_.rms_norm_eps;
  norm.fixed = info_.deterministic;
  norm.num_rows = rows;
  norm.hidden = config_.hidden_size;
  norm.out = normed_.data();
  FERRITE_RETURN_IF_CUDA_ERROR(RmsNorm(norm, stream_.get()));
  product.x = normed_.data();
  return products_.Run(product, linear);
}

absl::Status GpuForward::AddProduct(int32_t rows, const void* x, const Linear& linear) const {
  return products_.Run({.rows = rows,
                        .room = max_tokens(),
                        .x = x,
                        .epilogue = Epilogue::kAdd,
                        .y = residual_.data()},
                       linear);
}

}  // namespace ferrite

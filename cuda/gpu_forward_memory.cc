// What a forward pass takes of a GPU's memory.
#include <algorithm>

#include "cuda/cuda_status.h"
#include "cuda/gpu_forward.h"
#include "cuda/kernels/step.h"
#include "cuda/memory_plan.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

// How many tokens' projected heads are kept in fp32 at most: where heads are normed (Qwen3), all;
// rounding them to 16 bits both before and after the norm took bf16 logits past 2 % of error.
int32_t RawRows(const ModelConfig& config, const BackendInfo& info) {
  return config.qk_norm ? std::max(info.max_step_tokens, info.max_sequences) : info.max_sequences;
}

int32_t QkvSize(const ModelConfig& config) { return config.q_size() + 2 * config.kv_size(); }

// The batch sizes whose plans bound the attention workspace: it grows with both.
size_t AttentionWorkspaceBytes(const ModelConfig& config, const BackendInfo& info,
                               int32_t num_multiprocessors) {
  if (info.deterministic) {
    return PlanFixedDecodeAttention(info.max_sequences, config.num_heads, config.num_kv_heads,
                                    config.head_dim, info.max_sequence_length)
        .workspace_bytes;
  }
  size_t bytes = 0;
  for (int32_t sequences = 1; sequences <= info.max_sequences; ++sequences) {
    const DecodePlan plan =
        PlanDecodeAttention(sequences, config.num_heads, config.num_kv_heads, config.head_dim,
                            info.max_sequence_length, num_multiprocessors);
    bytes = std::max(bytes, plan.workspace_bytes);
  }
  return bytes;
}

}  // namespace

int32_t GpuForward::raw_rows() const { return RawRows(config_, info_); }

int64_t GpuForward::ActivationBytes(const ModelConfig& config, const BackendInfo& info) {
  const int64_t tokens = std::max(info.max_step_tokens, info.max_sequences);
  const int64_t sixteen_bit = int64_t{config.hidden_size} + QkvSize(config) + config.q_size() +
                              3 * int64_t{config.intermediate_size};
  const int64_t blocks_per_slot =
      (info.max_sequence_length + info.block_size - 1) / info.block_size;
  return tokens * (int64_t{4} * config.hidden_size + 2 * sixteen_bit) +
         int64_t{4} * RawRows(config, info) * QkvSize(config) +
         tokens * static_cast<int64_t>(sizeof(GpuRowLogprobs) + sizeof(float)) +
         int64_t{info.max_sequences} *
             (int64_t{2 * 4} * config.vocab_size + int64_t{2 * 4} * config.hidden_size +
              static_cast<int64_t>(sizeof(int32_t) + sizeof(TableChange)) * blocks_per_slot +
              2 * static_cast<int64_t>(sizeof(GpuSamplingParams)));
}

int64_t GpuForward::WorkspaceBytes(const ModelConfig& config, const BackendInfo& info,
                                   bool quantized, int32_t num_multiprocessors) {
  const int32_t rows = std::max(info.max_step_tokens, info.max_sequences);
  return Products::WorkspaceBytes(config, quantized, rows, num_multiprocessors) +
         static_cast<int64_t>(AttentionWorkspaceBytes(config, info, num_multiprocessors) +
                              SampleWorkspaceBytes(info.max_sequences, config.vocab_size) +
                              LogprobsWorkspaceBytes(info.max_sequences, config.vocab_size) +
                              info.max_sequences * sizeof(GpuRowLogprobs));
}

absl::Status GpuForward::Allocate() {
  const int device = stream_.device();
  const int64_t tokens = max_tokens();
  const int64_t sequences = info_.max_sequences;
  const int64_t cache = KvBlockBytes(config_, info_.block_size) / 2 /
                        static_cast<int64_t>(kGpuTypeSize) * info_.num_blocks;
  const auto halves = [&](DeviceBuffer<uint16_t>& buffer, int64_t size, const char* what) {
    auto created = DeviceBuffer<uint16_t>::Create(device, size, what);
    RETURN_IF_ERROR(created.status());
    buffer = *std::move(created);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(halves(k_cache_, cache, "the keys"));
  RETURN_IF_ERROR(halves(v_cache_, cache, "the values"));
  RETURN_IF_ERROR(halves(normed_, tokens * config_.hidden_size, "activations"));
  RETURN_IF_ERROR(halves(qkv_, tokens * QkvSize(config_), "activations"));
  RETURN_IF_ERROR(halves(attended_, tokens * config_.q_size(), "activations"));
  RETURN_IF_ERROR(halves(gate_up_, tokens * 2 * config_.intermediate_size, "activations"));
  RETURN_IF_ERROR(halves(activated_, tokens * config_.intermediate_size, "activations"));
  ASSIGN_OR_RETURN(
      residual_, DeviceBuffer<float>::Create(device, tokens * config_.hidden_size, "activations"));
  ASSIGN_OR_RETURN(raw_heads_,
                   DeviceBuffer<float>::Create(
                       device, int64_t{RawRows(config_, info_)} * QkvSize(config_), "activations"));
  ASSIGN_OR_RETURN(logits_,
                   DeviceBuffer<float>::Create(device, sequences * config_.vocab_size, "logits"));
  ASSIGN_OR_RETURN(adjusted_,
                   DeviceBuffer<float>::Create(device, sequences * config_.vocab_size, "logits"));
  ASSIGN_OR_RETURN(adjusted_slots_, DeviceBuffer<int32_t>::Create(device, sequences, "logits"));
  ASSIGN_OR_RETURN(scores_, DeviceBuffer<GpuRowLogprobs>::Create(device, tokens, "scores"));
  ASSIGN_OR_RETURN(pool_scales_, DeviceBuffer<float>::Create(device, tokens, "pooling"));
  ASSIGN_OR_RETURN(pool_sums_,
                   DeviceBuffer<float>::Create(device, sequences * config_.hidden_size, "pooling"));
  ASSIGN_OR_RETURN(pooled_,
                   DeviceBuffer<float>::Create(device, sequences * config_.hidden_size, "pooling"));
  ASSIGN_OR_RETURN(sampled_, DeviceBuffer<int32_t>::Create(device, sequences, "sampled tokens"));
  ASSIGN_OR_RETURN(block_tables_, DeviceBuffer<int32_t>::Create(
                                      device, sequences * blocks_per_slot_, "block tables"));
  ASSIGN_OR_RETURN(
      params_, DeviceBuffer<GpuSamplingParams>::Create(device, sequences, "sampling parameters"));
  // Padded rows of a graph attend to nothing, and their results are never written: what later
  // kernels read of them must still be numbers. Zeros are read before anything is written too.
  FERRITE_RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(attended_.data(), 0, attended_.bytes(), stream_.get()));
  FERRITE_RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(block_tables_.data(), 0, block_tables_.bytes(), stream_.get()));
  FERRITE_RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(sampled_.data(), 0, sampled_.bytes(), stream_.get()));
  return absl::OkStatus();
}

absl::Status GpuForward::SizeScratch() {
  const int device = stream_.device();
  ASSIGN_OR_RETURN(
      attention_workspace_,
      DeviceBuffer<float>::Create(
          device,
          static_cast<int64_t>(AttentionWorkspaceBytes(config_, info_, num_multiprocessors_) /
                               sizeof(float)),
          "attention's workspace"));
  if (info_.deterministic) {
    const auto counters = static_cast<int64_t>(
        PlanFixedDecodeAttention(info_.max_sequences, config_.num_heads, config_.num_kv_heads,
                                 config_.head_dim, info_.max_sequence_length)
            .counters);
    ASSIGN_OR_RETURN(attention_counters_,
                     DeviceBuffer<int32_t>::Create(device, counters, "attention's workspace"));
    if (counters > 0) {
      FERRITE_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(attention_counters_.data(), 0,
                                                   attention_counters_.bytes(), stream_.get()));
    }
  }
  ASSIGN_OR_RETURN(sample_workspace_,
                   DeviceMemory::Create(device,
                                        static_cast<int64_t>(SampleWorkspaceBytes(
                                            info_.max_sequences, config_.vocab_size)),
                                        "sampling's workspace"));
  ASSIGN_OR_RETURN(logprobs_, DeviceBuffer<GpuRowLogprobs>::Create(device, info_.max_sequences,
                                                                   "log-probabilities"));
  ASSIGN_OR_RETURN(logprobs_workspace_,
                   DeviceMemory::Create(device,
                                        static_cast<int64_t>(LogprobsWorkspaceBytes(
                                            info_.max_sequences, config_.vocab_size)),
                                        "log-probabilities' workspace"));
  FERRITE_RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(logprobs_workspace_.data(), 0, logprobs_workspace_.bytes(), stream_.get()));
  return absl::OkStatus();
}

}  // namespace ferrite

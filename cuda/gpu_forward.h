// One ragged forward pass of a decoder-only transformer on a GPU, sampling included.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/device_buffer.h"
#include "cuda/kernels/adjust_logits.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/logprobs.h"
#include "cuda/kernels/sample.h"
#include "cuda/products.h"
#include "cuda/step_inputs.h"
#include "cuda/stream.h"
#include "cuda/transformer_gpu_weights.h"
#include "engine/backend.h"
#include "engine/model/model_config.h"

namespace ferrite {

// What a step is, as far as it is fixed when a graph is captured.
struct GpuStep {
  StepInputs inputs;  // on the device
  StepShape shape;
  // The first so many sequences have one token each; the others any number.
  int32_t num_decodes = 0;
  int32_t max_pooled_tokens = 0;  // of one sequence
};

// Owns the KV cache, the slots' block tables and sampling parameters, and every buffer a step
// needs. All work goes to one stream; nothing is allocated or waited for once created. Must die
// after its stream's work has ended (stream.h).
class GpuForward {
 public:
  // `info` has the sizes. `weights` and `stream` must outlive the pass.
  static absl::StatusOr<std::unique_ptr<GpuForward>> Create(const ModelConfig& config,
                                                            const BackendInfo& info,
                                                            const TransformerGpuWeights& weights,
                                                            const Stream& stream);

  // For planning memory: the buffers of the largest step, with the copies that changes of slots
  // come in, and what cuBLAS, attention, sampling and our products use besides. `quantized`:
  // whether any projection is.
  static int64_t ActivationBytes(const ModelConfig& config, const BackendInfo& info);
  static int64_t WorkspaceBytes(const ModelConfig& config, const BackendInfo& info, bool quantized,
                                int32_t num_multiprocessors);

  // Shows the products all of Products::RowSizes, so that none is new to a step. Before the first
  // step, since it leaves anything in the activations.
  absl::Status WarmUp() const;

  // Enqueues the whole step: row r's token goes to sampled()[r].
  absl::Status Enqueue(const GpuStep& step) const;

  // Behind Enqueue, and part of no graph: the rows whose parameters adjust logits are sampled
  // again, from adjusted ones, and count what they got. logits() stays as it was.
  absl::Status EnqueueAdjusted(const GpuStep& step, const AdjustState& state) const;

  // Behind Enqueue, and part of no graph: logprobs()[r] of the rows that ask for theirs.
  absl::Status EnqueueLogprobs(const GpuStep& step) const;

  int32_t* sampled() const { return sampled_.data(); }  // [max_sequences]
  // [max_sequences]; those of rows whose parameters ask for them
  const GpuRowLogprobs* logprobs() const { return logprobs_.data(); }
  const GpuRowLogprobs* scores() const { return scores_.data(); }  // [max_step_tokens]
  const float* pooled() const { return pooled_.data(); }           // [max_sequences, hidden]
  const float* logits() const { return logits_.data(); }           // [max_sequences, vocab]
  int32_t* block_tables() const {
    return block_tables_.data();
  }  // [max_sequences, blocks_per_slot]
  int32_t blocks_per_slot() const { return blocks_per_slot_; }
  GpuSamplingParams* params() const { return params_.data(); }  // [max_sequences]

 private:
  GpuForward(const ModelConfig& config, const BackendInfo& info,
             const TransformerGpuWeights& weights, const Stream& stream, Products products);

  int32_t max_tokens() const { return std::max(info_.max_step_tokens, info_.max_sequences); }
  // How many tokens' projected heads there is room for in fp32.
  int32_t raw_rows() const;
  // Of a deterministic pass.
  absl::Status PrepareProducts();
  absl::Status Allocate();
  absl::Status SizeScratch();
  // Whether attention prepares the heads of all the step's tokens itself.
  bool AttentionPrepares(const GpuStep& step) const;
  // Whether the projected heads are kept in fp32.
  bool KeepsRawHeads(const GpuStep& step) const;
  absl::Status EnqueueLayer(const GpuStep& step, int32_t layer) const;
  // Heads of all tokens, in fp32 if `raw`.
  absl::Status EnqueueQkv(int32_t rows, const LayerWeights& weights, bool raw) const;
  absl::Status EnqueueMlp(int32_t rows, const LayerWeights& weights) const;
  absl::Status EnqueueAttention(const GpuStep& step, int32_t layer) const;
  cudaError_t AttendDecodes(const AttentionArguments& attention) const;
  // logits_ is scratch to it.
  absl::Status EnqueueScores(const GpuStep& step) const;
  absl::Status EnqueuePooling(const GpuStep& step) const;
  absl::Status EnqueueHead(const GpuStep& step) const;
  absl::Status EnqueueSampling(const GpuStep& step, const float* logits,
                               const int32_t* row_slots) const;
  // logits_ = head(norm(rows of residual_)).
  absl::Status ProjectRows(const int32_t* rows, int32_t num_rows) const;
  // out = norm(residual) W^T + b, by the way that suits the number of rows; `out` has room for
  // `room` rows.
  absl::Status NormedProduct(int32_t rows, int32_t room, const float* norm_weight,
                             const Linear& linear, Product::Epilogue epilogue, void* out) const;
  // residual += x W^T + b.
  absl::Status AddProduct(int32_t rows, const void* x, const Linear& linear) const;

  ModelConfig config_;
  BackendInfo info_;
  const TransformerGpuWeights& weights_;
  const Stream& stream_;
  GpuType type_;
  int32_t blocks_per_slot_;
  int32_t num_multiprocessors_ = 0;
  Products products_;

  DeviceBuffer<uint16_t> k_cache_;  // [num_layers, num_blocks, kv_heads, block_size, head_dim]
  DeviceBuffer<uint16_t> v_cache_;
  DeviceBuffer<int32_t> block_tables_;
  DeviceBuffer<GpuSamplingParams> params_;
  // T is max_step_tokens, S max_sequences.
  DeviceBuffer<float> residual_;      // [T, hidden]
  DeviceBuffer<uint16_t> normed_;     // [max(T, S), hidden]
  DeviceBuffer<uint16_t> qkv_;        // [T, q_size + 2 kv_size]
  DeviceBuffer<float> raw_heads_;     // the same in fp32; [S, .] without norms of heads
  DeviceBuffer<uint16_t> attended_;   // [T, q_size]
  DeviceBuffer<uint16_t> gate_up_;    // [T, 2 intermediate]
  DeviceBuffer<uint16_t> activated_;  // [T, intermediate]
  DeviceBuffer<float> logits_;        // [S, vocab]
  DeviceBuffer<int32_t> sampled_;     // [S]
  DeviceBuffer<float> attention_workspace_;
  DeviceBuffer<int32_t> attention_counters_;  // of a deterministic pass
  DeviceBuffer<GpuRowLogprobs> logprobs_;     // [S]
  DeviceBuffer<GpuRowLogprobs> scores_;       // [T]
  DeviceBuffer<float> adjusted_;              // [S, vocab]
  DeviceBuffer<int32_t> adjusted_slots_;      // [S]
  DeviceBuffer<float> pool_scales_;           // [T]
  DeviceBuffer<float> pool_sums_;             // [S, hidden]
  DeviceBuffer<float> pooled_;                // [S, hidden]
  DeviceMemory sample_workspace_;
  DeviceMemory logprobs_workspace_;
};

}  // namespace ferrite

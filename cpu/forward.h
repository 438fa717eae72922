// One ragged forward pass of a decoder-only transformer on the CPU.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "cpu/aligned_buffer.h"
#include "cpu/attention.h"
#include "cpu/compute_type.h"
#include "cpu/kv_pool.h"
#include "cpu/thread_pool.h"
#include "cpu/weights.h"
#include "engine/batch.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"

namespace ferrite {

struct ForwardOptions {
  ComputeType compute_type = ComputeType::kFp32;
  int32_t num_blocks = 0;
  int32_t block_size = 0;
  int32_t max_sequences = 0;
  int32_t max_step_tokens = 0;
  int32_t max_sequence_length = 0;
  // Logits are the same bits whatever else is in a step, however a prompt is cut.
  bool deterministic = false;
};

// Holds the weights, the KV pool and every buffer a step needs; a step allocates nothing (except
// that oneDNN, where it serves, does a little inside its calls). Prefill chunks and decodes go
// through together. Used by one thread at a time.
class ForwardPass {
 public:
  // The checkpoint is not needed afterwards; `pool` must outlive the pass. Errors are those of
  // LoadCpuWeights, MatmulEngine::Create and KvPool::Create.
  static absl::StatusOr<std::unique_ptr<ForwardPass>> Create(const ModelConfig& config,
                                                             const Checkpoint& checkpoint,
                                                             const ForwardOptions& options,
                                                             ThreadPool* pool);

  // Runs `batch`, which must be valid (see SlotTable::Check), with its input tokens `token_ids` [T]
  // and block tables [max_sequences, table_stride]. Returns the logits [R, vocab_size] of the
  // sample rows, which the caller may overwrite and the next Run does.
  absl::StatusOr<std::span<float>> Run(const Batch& batch, std::span<const TokenId> token_ids,
                                       std::span<const BlockId> block_tables, int64_t table_stride);

  // Of the last Run's tokens, which Run's own logits are not needed any longer for: the logits
  // [tokens, vocab_size] of at most max_sequences of them, given by index into its T tokens.
  absl::StatusOr<std::span<float>> Logits(std::span<const int32_t> tokens);

  // out[hidden_size] = the final norm's output at the last Run's token `token`, in fp32 whatever
  // the compute type. Several threads may call it at once.
  void FinalNorm(int32_t token, float* out) const;

  int64_t num_parameters() const { return weights_.num_parameters; }
  int64_t kv_pool_bytes() const { return kv_.bytes(); }

 private:
  ForwardPass(const ModelConfig& config, ThreadPool* pool) : config_(config), pool_(pool) {}

  absl::Status AllocateBuffers(const ForwardOptions& options);
  void FillRotationTables(int32_t length);
  void Embed(std::span<const TokenId> token_ids);
  void Normalize(const float* x, const std::vector<float>& weight, int32_t rows);
  void PrepareHeads(const Batch& batch, int32_t layer);
  void Activate(int32_t rows);
  void GatherSample(int32_t row, int32_t token);
  absl::StatusOr<std::span<float>> SampleLogits(int32_t rows);
  absl::Status RunLayer(const Batch& batch, std::span<const BlockId> block_tables,
                        int64_t table_stride, int32_t layer);

  ModelConfig config_;
  ThreadPool* pool_;
  ComputeType type_ = ComputeType::kFp32;  // of weights and KV cache
  std::unique_ptr<MatmulEngine> matmul_;
  CpuWeights weights_;
  KvPool kv_;
  Attention attention_;
  std::vector<float> cosines_;  // [max_sequence_length, head_dim / 2]
  std::vector<float> sines_;
  // T is max_step_tokens. Matmul inputs have rows to spare, as CpuLinear::Run wants; their type is
  // the matmul engine's input type.
  AlignedBuffer<float> residual_;       // [T, hidden]
  AlignedBuffer<std::byte> normed_;     // [T, hidden]
  AlignedBuffer<float> qkv_;            // [T, q_size + 2 kv_size]
  AlignedBuffer<std::byte> attended_;   // [T, q_size]
  AlignedBuffer<float> gate_up_;        // [T, 2 intermediate]
  AlignedBuffer<std::byte> activated_;  // [T, intermediate]
  AlignedBuffer<float> sampled_;        // [max_sequences, hidden]
  AlignedBuffer<float> logits_;         // [max_sequences, vocab]
};

}  // namespace ferrite

// Runs a model on the CPU.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cpu/thread_pool.h"
#include "engine/backend.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"
#include "engine/sampler.h"
#include "engine/slot_table.h"
#include "engine/token_counts.h"

namespace ferrite {

class ForwardPass;

struct CpuBackendOptions {
  // "fp32", "bf16", or "auto": bf16 if most of the checkpoint is bf16, else fp32.
  std::string compute_type = "auto";
  int32_t num_threads = 0;  // 0: every CPU this process may run on
  int32_t num_blocks = 0;   // of the KV pool; 0: as many as kv_pool_bytes hold and can be used
  int64_t kv_pool_bytes = 256 << 20;
  int32_t block_size = 16;
  int32_t max_sequences = 1;
  int32_t max_step_tokens = 1;
  int32_t max_sequence_length = 0;  // 0: the model's
  bool deterministic = false;       // as BackendInfo has it
};

// Launch computes the step before it returns; Wait hands over the result. Create, and all the calls
// after it, may be on different threads.
class CpuBackend : public Backend {
 public:
  // InvalidArgument names an option out of range, or the tensor that is wrong; FailedPrecondition
  // if the CPU cannot compute in the type asked for; ResourceExhausted, with the numbers, if the
  // memory cannot be had. `checkpoint` is not needed afterwards.
  static absl::StatusOr<std::unique_ptr<CpuBackend>> Create(const ModelConfig& config,
                                                            const Checkpoint& checkpoint,
                                                            const CpuBackendOptions& options);

  ~CpuBackend() override;

  const BackendInfo& info() const override { return info_; }
  absl::Status Launch(const Batch& batch) override;
  absl::Status Wait(StepResult* result) override;

  int64_t kv_pool_bytes() const;

 private:
  explicit CpuBackend(const BackendInfo& info);

  void ResolveInputs(const Batch& batch);
  void PrepareSamples(const Batch& batch);
  void Sample(const Batch& batch, std::span<float> logits);
  void SampleRow(int64_t row, SeqSlot slot, int32_t output_index, std::span<float> logits,
                 Sampler* sampler);
  // Where the row's likeliest tokens go.
  std::span<TokenLogprob> Top(int64_t row);
  absl::Status Score(const Batch& batch);
  void Pool(const Batch& batch);
  void AddToSum(const Batch& batch, int32_t sequence, int32_t thread);
  // Rows of logits that are worth another thread: one costs as much as its vocabulary is long.
  int64_t SampleGrain() const { return (1 << 14) / info_.vocab_size + 1; }

  BackendInfo info_;
  SlotTable slots_;
  std::vector<TokenCounts> counts_;  // [max_sequences], of slots whose parameters want them
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<ForwardPass> forward_;
  std::vector<Sampler> samplers_;   // [num_threads]
  std::vector<TokenId> token_ids_;  // [T] the step's inputs
  std::vector<int32_t> scored_;     // [max_sequences] tokens whose logits are scored together
  std::vector<float>
      pooled_sums_;  // [max_sequences, hidden] of slots that pool by the mean, so far
  std::vector<float> final_norms_;  // [num_threads, hidden]
  // Of the last launched step.
  std::vector<TokenId> sampled_;       // [R]
  std::vector<int32_t> num_logprobs_;  // [R] as asked for
  bool any_logprobs_ = false;
  std::vector<float> logprobs_;    // [R]
  std::vector<TokenLogprob> top_;  // [max_sequences, kMaxLogprobs]
  LogprobList scores_;
  std::vector<float> pooled_;  // [E, hidden]
  uint64_t step_ = 0;
  bool outstanding_ = false;
};

}  // namespace ferrite

// A step between its launch and its result.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/kernels/logprobs.h"
#include "cuda/kernels/pool.h"
#include "cuda/kernels/step.h"
#include "cuda/pinned_buffer.h"
#include "cuda/step_inputs.h"
#include "cuda/stream.h"
#include "engine/backend.h"
#include "engine/batch.h"
#include "engine/slot_table.h"

namespace ferrite {

// Host buffers for the largest step, which are the device's from Launch to Wait, and what Launch
// must remember for Wait. Allocates nothing once created.
struct Flight {
  // `most` bounds the steps, `table_changes` what changes in the block tables.
  static absl::StatusOr<Flight> Create(const BackendInfo& info, const StepShape& most,
                                       int64_t table_changes, int device);

  // Takes down what `batch`, which `slots` has checked, asks for.
  void Note(const Batch& batch, const SlotTable& slots);

  // The shape of the noted step, as it is.
  StepShape shape() const;

  // Once the copies have ended.
  void Take(const BackendInfo& info, StepResult* result) const;

  uint64_t step = 0;
  int32_t num_tokens = 0;
  int32_t num_sequences = 0;
  int32_t num_samples = 0;
  bool any_adjusted = false;          // samples from adjusted logits
  bool any_logprobs = false;          // samples with log-probabilities
  std::vector<int32_t> num_logprobs;  // [num_samples], as asked for
  std::vector<int32_t> scored_top;    // [num_scored], as asked for
  std::vector<PoolItem> pool_items;
  int32_t max_pooled_tokens = 0;  // of an item
  int32_t num_pooled = 0;         // sequences whose vector is complete

  PinnedBuffer<int32_t> inputs;
  PinnedBuffer<TableChange> table_changes;
  PinnedBuffer<GpuSamplingParams> params;  // [max_sequences]
  PinnedBuffer<int32_t> param_slots;       // [max_sequences]
  PinnedBuffer<int32_t> tokens;            // [max_sequences], what was sampled
  PinnedBuffer<GpuRowLogprobs> logprobs;   // [max_sequences], if any were asked for
  PinnedBuffer<GpuRowLogprobs> scores;     // [max_step_tokens]
  PinnedBuffer<float> pooled;              // [max_sequences, hidden]
  std::unique_ptr<Event> done;

 private:
  void NotePooling(const Batch& batch, const SlotTable& slots);
};

}  // namespace ferrite

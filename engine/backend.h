// What executes the steps a worker plans: the CPU or a GPU, holding weights and KV pool.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/batch.h"

namespace ferrite {

// Memory of a device that is held for one purpose.
struct MemoryUse {
  const char* kind;  // "weights", "kv_cache", ...: a constant
  int64_t bytes = 0;
};

struct BackendInfo {
  std::string device;               // "cpu", "cuda:0"
  std::string compute_type;         // "fp32", "bf16", "fp16"
  int32_t num_blocks = 0;           // KV blocks in the pool
  int32_t block_size = 0;           // tokens a block
  int32_t max_sequences = 0;        // slots, and the most sequences in one step
  int32_t max_step_tokens = 0;      // the most tokens in one step
  int32_t max_sequence_length = 0;  // tokens; bounds a slot's block table
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t max_end_token_ids = INT32_MAX;  // of one sequence's SamplingParams
  bool adjusts_logits = false;            // as SamplingParams::adjusts_logits() asks
  bool scores_tokens = false;             // serves Batch::scored
  bool pools = false;                     // serves Batch::pooled_seqs
  int64_t num_parameters = 0;
  std::vector<MemoryUse> device_memory = {};  // of a GPU; empty for the host's
  // What the last bits of its results depend on besides the model and compute_type: chip and
  // libraries, such as "x86-64 with AVX-512".
  std::string platform = {};
  // Whether a sequence's results are the same bits whatever else is in its steps, however it is cut
  // into them, and on every backend of the same platform.
  bool deterministic = false;
  std::string remarks = {};  // what its log should say of how it does its work; or empty
  // How many steps the worker keeps outstanding, 1 or 2. A backend whose Launch computes inline
  // says 1, so that its results are delivered before the next step is computed.
  int32_t pipeline_depth = 1;
  int32_t mixed_step_tokens = 256;  // for SchedulerOptions that leave it to the backend
};

// Two-phase, so that the host plans step t+1 while the device runs step t.
//
// Launch and Wait are called by one thread, the worker's. At most pipeline_depth steps are
// outstanding; Wait answers them in the order of their launch. A sequence's input_row refers to the
// sample rows of the step launched just before, whether or not that one has been waited for. An
// error from either is final: the worker fails its requests and stops using the backend.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual const BackendInfo& info() const = 0;

  // Enqueues one step. `batch` and what it points to may be reused once Launch has returned.
  virtual absl::Status Launch(const Batch& batch) = 0;

  // Blocks until the oldest launched step has ended and writes its outcome to `result`, whose
  // vectors keep their capacity. FailedPrecondition if nothing is outstanding.
  virtual absl::Status Wait(StepResult* result) = 0;
};

}  // namespace ferrite

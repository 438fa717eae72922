// What the device keeps of the slots' penalties, biases and barred tokens, and how it gets there.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cuda/device_buffer.h"
#include "cuda/kernels/adjust_logits.h"
#include "cuda/pinned_buffer.h"
#include "cuda/stream.h"
#include "engine/backend.h"
#include "engine/batch.h"
#include "engine/sampling_params.h"

namespace ferrite {

// Counts and barred tokens are worked out on the host when a slot is assigned; from then on the
// device counts what it samples (CountTokens). All work goes to one stream. Thread-compatible; dies
// after its stream's work has ended (stream.h).
class SlotAdjustments {
 public:
  // `info` has the sizes; `stream` outlives it.
  static absl::StatusOr<std::unique_ptr<SlotAdjustments>> Create(const BackendInfo& info,
                                                                 const Stream& stream);

  // For planning memory: what Create takes of the device's.
  static int64_t Bytes(const BackendInfo& info);

  // Enqueues the state of those of the slots whose parameters adjust logits; no slot twice. Uses
  // the staging memory of `flight` (0 or 1), whose last copies have ended. Waits for the device
  // only if more is assigned at once than that holds: everything of one slot, and 512 tokens,
  // biases and words of each besides. InternalError for more than AdjustState::kMaxBiases.
  absl::Status Assign(std::span<const SlotAssignment> assignments, int flight);

  const AdjustState& state() const { return state_; }

 private:
  struct Staging {
    PinnedBuffer<SlotAdjustment> adjustments;  // [max_sequences]
    PinnedBuffer<AdjustEntry> entries;
    int32_t num_adjustments = 0;
    int32_t num_entries = 0;
  };

  SlotAdjustments(const BackendInfo& info, const Stream& stream);

  absl::Status Allocate();
  // Adds what `assignment` needs.
  void Stage(const SlotAssignment& assignment, Staging* staging);
  int32_t StageCounts(const SlotAssignment& assignment, Staging* staging);
  int32_t StageBarred(const SamplingParams& params, uint32_t other_words, Staging* staging);
  static void Add(Staging* staging, uint32_t at, uint32_t value);
  // Enqueues what is staged.
  absl::Status Upload(const Staging& staging);

  BackendInfo info_;
  const Stream& stream_;
  AdjustState state_;
  DeviceBuffer<uint16_t> counts_;
  DeviceBuffer<uint32_t> barred_;
  DeviceBuffer<GpuLogitBias> biases_;
  DeviceBuffer<SlotAdjustment> adjustments_;
  DeviceBuffer<AdjustEntry> entries_;
  std::array<Staging, 2> staging_;
  std::unique_ptr<Event> uploaded_;
  // A sequence's counts, by token; zeros in between.
  std::vector<uint16_t> counting_;  // [vocab_size]
  std::vector<TokenId> counted_;    // those that are not 0
  std::vector<uint32_t> words_;     // [BarredWords]
};

}  // namespace ferrite

#include "cuda/slot_adjustments.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "cuda/cuda_status.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

constexpr int64_t kUsualEntries = 512;  // of a slot

// The most that a sequence can have different tokens.
int64_t MostTokens(const BackendInfo& info) {
  return std::min(info.vocab_size, info.max_sequence_length);
}

int64_t StagedEntries(const BackendInfo& info) {
  return MostTokens(info) + BarredWords(info.vocab_size) + AdjustState::kMaxBiases +
         kUsualEntries * info.max_sequences;
}

bool BarsTokens(const SamplingParams& params) {
  return !params.allowed_token_ids.empty() || !params.banned_token_ids.empty();
}

}  // namespace

SlotAdjustments::SlotAdjustments(const BackendInfo& info, const Stream& stream)
    : info_(info),
      stream_(stream),
      counting_(info.vocab_size),
      words_(BarredWords(info.vocab_size)) {
  counted_.reserve(MostTokens(info));
}

absl::StatusOr<std::unique_ptr<SlotAdjustments>> SlotAdjustments::Create(const BackendInfo& info,
                                                                         const Stream& stream) {
  std::unique_ptr<SlotAdjustments> created(new SlotAdjustments(info, stream));
  RETURN_IF_ERROR(created->Allocate());
  return created;
}

int64_t SlotAdjustments::Bytes(const BackendInfo& info) {
  const int64_t slot = int64_t{CountStride(info.vocab_size)} * sizeof(uint16_t) +
                       int64_t{BarredWords(info.vocab_size)} * sizeof(uint32_t) +
                       AdjustState::kMaxBiases * sizeof(GpuLogitBias) + sizeof(SlotAdjustment);
  return info.max_sequences * slot +
         StagedEntries(info) * static_cast<int64_t>(sizeof(AdjustEntry));
}

absl::Status SlotAdjustments::Allocate() {
  const int device = stream_.device();
  const int64_t slots = info_.max_sequences;
  const int64_t entries = StagedEntries(info_);
  ASSIGN_OR_RETURN(counts_, DeviceBuffer<uint16_t>::Create(
                                device, slots * CountStride(info_.vocab_size), "token counts"));
  ASSIGN_OR_RETURN(barred_, DeviceBuffer<uint32_t>::Create(
                                device, slots * BarredWords(info_.vocab_size), "barred tokens"));
  ASSIGN_OR_RETURN(biases_, DeviceBuffer<GpuLogitBias>::Create(
                                device, slots * AdjustState::kMaxBiases, "logit biases"));
  ASSIGN_OR_RETURN(adjustments_,
                   DeviceBuffer<SlotAdjustment>::Create(device, slots, "logit adjustments"));
  ASSIGN_OR_RETURN(entries_,
                   DeviceBuffer<AdjustEntry>::Create(device, entries, "logit adjustments"));
  for (Staging& staging : staging_) {
    ASSIGN_OR_RETURN(staging.adjustments,
                     PinnedBuffer<SlotAdjustment>::Create(slots, "logit adjustments"));
    ASSIGN_OR_RETURN(staging.entries,
                     PinnedBuffer<AdjustEntry>::Create(entries, "logit adjustments"));
  }
  ASSIGN_OR_RETURN(Event uploaded, Event::Create(device));
  uploaded_ = std::make_unique<Event>(std::move(uploaded));
  state_ = {.vocab_size = info_.vocab_size,
            .counts = counts_.data(),
            .barred = barred_.data(),
            .biases = biases_.data()};
  return absl::OkStatus();
}

absl::Status SlotAdjustments::Assign(std::span<const SlotAssignment> assignments, int flight) {
  Staging& staging = staging_[flight];
  staging.num_adjustments = 0;
  staging.num_entries = 0;
  for (const SlotAssignment& assignment : assignments) {
    const SamplingParams& params = *assignment.params;
    if (!params.adjusts_logits()) {
      continue;
    }
    if (params.logit_bias.size() > AdjustState::kMaxBiases) {
      return absl::InternalError(
          absl::StrCat("slot ", assignment.slot.value, " has ", params.logit_bias.size(),
                       " logit biases; the most are ", AdjustState::kMaxBiases));
    }
    if (assignment.tokens.size() > static_cast<size_t>(info_.max_sequence_length)) {
      return absl::InternalError(
          absl::StrCat("slot ", assignment.slot.value, " has ", assignment.tokens.size(),
                       " tokens; the longest sequence is ", info_.max_sequence_length));
    }
    const int64_t most =
        std::min<int64_t>(static_cast<int64_t>(assignment.tokens.size()), info_.vocab_size) +
        BarredWords(info_.vocab_size) + static_cast<int64_t>(params.logit_bias.size());
    if (staging.num_entries + most > staging.entries.size() ||
        staging.num_adjustments == staging.adjustments.size()) {
      RETURN_IF_ERROR(Upload(staging));
      RETURN_IF_ERROR(uploaded_->Synchronize());
      staging.num_adjustments = 0;
      staging.num_entries = 0;
    }
    Stage(assignment, &staging);
  }
  return Upload(staging);
}

void SlotAdjustments::Stage(const SlotAssignment& assignment, Staging* staging) {
  const SamplingParams& params = *assignment.params;
  SlotAdjustment adjustment = {};
  adjustment.slot = assignment.slot.value;
  adjustment.first_entry = staging->num_entries;
  if (params.counts_tokens()) {
    adjustment.has_counts = 1;
    adjustment.num_counts = StageCounts(assignment, staging);
  }
  if (BarsTokens(params)) {
    adjustment.has_barred = 1;
    adjustment.other_words = params.allowed_token_ids.empty() ? 0 : ~uint32_t{0};
    adjustment.num_words = StageBarred(params, adjustment.other_words, staging);
  }
  // Ids beyond the vocabulary meet no logit.
  adjustment.num_biases = static_cast<int32_t>(params.logit_bias.size());
  for (const LogitBias& bias : params.logit_bias) {
    Add(staging, static_cast<uint32_t>(bias.id), std::bit_cast<uint32_t>(bias.bias));
  }
  staging->adjustments.data()[staging->num_adjustments++] = adjustment;
}

int32_t SlotAdjustments::StageCounts(const SlotAssignment& assignment, Staging* staging) {
  counted_.clear();
  for (size_t i = 0; i < assignment.tokens.size(); ++i) {
    const TokenId token = assignment.tokens[i];
    if (token < 0 || token >= info_.vocab_size) {
      continue;
    }
    uint16_t& count = counting_[token];
    if (count == 0) {
      counted_.push_back(token);
    }
    if (i < static_cast<size_t>(assignment.num_prompt_tokens)) {
      count |= AdjustState::kInPrompt;
    } else if ((count & AdjustState::kMaxCount) < AdjustState::kMaxCount) {
      ++count;
    }
  }
  for (const TokenId token : counted_) {
    Add(staging, static_cast<uint32_t>(token), counting_[token]);
    counting_[token] = 0;
  }
  return static_cast<int32_t>(counted_.size());
}

int32_t SlotAdjustments::StageBarred(const SamplingParams& params, uint32_t other_words,
                                     Staging* staging) {
  std::fill(words_.begin(), words_.end(), other_words);
  const auto bar = [this](TokenId token, bool barred) {
    if (token >= 0 && token < info_.vocab_size) {
      const uint32_t bit = uint32_t{1} << token % 32;
      uint32_t& word = words_[token / 32];
      word = barred ? word | bit : word & ~bit;
    }
  };
  for (const TokenId token : params.allowed_token_ids) {
    bar(token, false);
  }
  for (const TokenId token : params.banned_token_ids) {
    bar(token, true);
  }
  const int32_t before = staging->num_entries;
  for (size_t i = 0; i < words_.size(); ++i) {
    if (words_[i] != other_words) {
      Add(staging, static_cast<uint32_t>(i), words_[i]);
    }
  }
  return staging->num_entries - before;
}

void SlotAdjustments::Add(Staging* staging, uint32_t at, uint32_t value) {
  staging->entries.data()[staging->num_entries++] = {at, value};
}

absl::Status SlotAdjustments::Upload(const Staging& staging) {
  if (staging.num_adjustments == 0) {
    return absl::OkStatus();
  }
  FERRITE_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(adjustments_.data(), staging.adjustments.data(),
                                               staging.num_adjustments * sizeof(SlotAdjustment),
                                               cudaMemcpyHostToDevice, stream_.get()));
  if (staging.num_entries > 0) {
    FERRITE_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(entries_.data(), staging.entries.data(),
                                                 staging.num_entries * sizeof(AdjustEntry),
                                                 cudaMemcpyHostToDevice, stream_.get()));
  }
  RETURN_IF_ERROR(uploaded_->Record(stream_));
  return CudaStatus(SetSlotAdjustments(adjustments_.data(), staging.num_adjustments,
                                       entries_.data(), state_, stream_.get()),
                    "SetSlotAdjustments");
}

}  // namespace ferrite

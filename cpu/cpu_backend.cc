#include "cpu/cpu_backend.h"

#include <algorithm>
#include <limits>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cpu/forward.h"
#include "cpu/isa.h"
#include "cpu/simd_ops.h"
#include "engine/status_macros.h"

namespace ferrite {
namespace {

absl::StatusOr<ComputeType> ChooseComputeType(const std::string& wanted,
                                              const Checkpoint& checkpoint) {
  if (wanted == "fp32") {
    return ComputeType::kFp32;
  }
  if (wanted == "bf16") {
    return ComputeType::kBf16;
  }
  if (wanted == "auto") {
    return checkpoint.IsMostlyBf16() ? ComputeType::kBf16 : ComputeType::kFp32;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("compute_type is \"", wanted, "\"; the CPU has auto, fp32 and bf16"));
}

absl::Status CheckOptions(const CpuBackendOptions& options, const ModelConfig& config) {
  const struct {
    const char* name;
    int64_t value;
    int64_t least;
    int64_t most;
  } bounds[] = {{"num_threads", options.num_threads, 0, 1 << 12},
                {"num_blocks", options.num_blocks, 0, INT32_MAX},
                {"block_size", options.block_size, 1, 1 << 12},
                {"max_sequences", options.max_sequences, 1, 1 << 16},
                {"max_step_tokens", options.max_step_tokens, 1, 1 << 20},
                {"max_sequence_length", options.max_sequence_length, 0, INT32_MAX}};
  for (const auto& bound : bounds) {
    if (bound.value < bound.least || bound.value > bound.most) {
      return absl::InvalidArgumentError(absl::StrCat(
          bound.name, " is ", bound.value, "; it must be ", bound.least, " to ", bound.most));
    }
  }
  if (options.max_sequence_length > config.max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat("max_sequence_length is ",
                                                   options.max_sequence_length, "; the model's is ",
                                                   config.max_position_embeddings));
  }
  return absl::OkStatus();
}

// How many blocks the KV pool has: as configured, or what kv_pool_bytes hold, but no more than all
// sequences at their longest can use.
absl::StatusOr<int32_t> ChooseNumBlocks(const CpuBackendOptions& options, const ModelConfig& config,
                                        ComputeType type, int32_t max_sequence_length) {
  int64_t blocks = options.num_blocks;
  if (blocks == 0) {
    const KvGeometry one_block{.num_layers = config.num_layers,
                               .num_blocks = 1,
                               .block_size = options.block_size,
                               .kv_heads = config.num_kv_heads,
                               .head_dim = config.head_dim};
    const int64_t block_bytes = (one_block.key_tile() + one_block.value_tile()) *
                                config.num_kv_heads * config.num_layers *
                                static_cast<int64_t>(ComputeTypeSize(type));
    const int64_t usable = (int64_t{max_sequence_length} + options.block_size - 1) /
                           options.block_size * options.max_sequences;
    blocks = std::min(options.kv_pool_bytes / block_bytes, usable);
    if (blocks < 1) {
      return absl::ResourceExhaustedError(absl::StrCat("the KV pool has ", options.kv_pool_bytes,
                                                       " bytes; one block of ", options.block_size,
                                                       " tokens takes ", block_bytes));
    }
  }
  // slot_mapping counts the pool's rows in 32 bits.
  if (blocks * options.block_size > INT32_MAX) {
    return absl::ResourceExhaustedError(absl::StrCat("num_blocks = ", blocks,
                                                     " of block_size = ", options.block_size,
                                                     " are more than ", INT32_MAX, " tokens"));
  }
  return static_cast<int32_t>(blocks);
}

}  // namespace

CpuBackend::CpuBackend(const BackendInfo& info)
    : info_(info), slots_(info), counts_(info.max_sequences) {
  token_ids_.reserve(info.max_step_tokens);
  sampled_.reserve(info.max_sequences);
  num_logprobs_.reserve(info.max_sequences);
  logprobs_.reserve(info.max_sequences);
  top_.resize(size_t{SamplingParams::kMaxLogprobs} * info.max_sequences);
  scored_.reserve(info.max_sequences);
  scores_.Reserve(info.max_step_tokens, SamplingParams::kMaxLogprobs);
  pooled_sums_.resize(int64_t{info.max_sequences} * info.hidden_size);
  pooled_.reserve(int64_t{info.max_sequences} * info.hidden_size);
}

CpuBackend::~CpuBackend() = default;

int64_t CpuBackend::kv_pool_bytes() const { return forward_->kv_pool_bytes(); }

absl::StatusOr<std::unique_ptr<CpuBackend>> CpuBackend::Create(const ModelConfig& config,
                                                               const Checkpoint& checkpoint,
                                                               const CpuBackendOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options, config));
  ASSIGN_OR_RETURN(const ComputeType type, ChooseComputeType(options.compute_type, checkpoint));
  const int32_t max_sequence_length = options.max_sequence_length > 0
                                          ? options.max_sequence_length
                                          : config.max_position_embeddings;
  ASSIGN_OR_RETURN(const int32_t num_blocks,
                   ChooseNumBlocks(options, config, type, max_sequence_length));
  const BackendInfo info{.device = "cpu",
                         .compute_type = ComputeTypeName(type),
                         .num_blocks = num_blocks,
                         .block_size = options.block_size,
                         .max_sequences = options.max_sequences,
                         .max_step_tokens = options.max_step_tokens,
                         .max_sequence_length = max_sequence_length,
                         .vocab_size = config.vocab_size,
                         .hidden_size = config.hidden_size,
                         .adjusts_logits = true,
                         .scores_tokens = true,
                         .pools = true,
                         .num_parameters = 0,
                         .platform = absl::StrCat("x86-64 with ", IsaName(BestIsa())),
                         .deterministic = options.deterministic,
                         .pipeline_depth = 1};
  const ForwardOptions forward{.compute_type = type,
                               .num_blocks = info.num_blocks,
                               .block_size = info.block_size,
                               .max_sequences = info.max_sequences,
                               .max_step_tokens = info.max_step_tokens,
                               .max_sequence_length = info.max_sequence_length,
                               .deterministic = options.deterministic};
  try {
    std::unique_ptr<CpuBackend> backend(new CpuBackend(info));
    backend->pool_ = std::make_unique<ThreadPool>(options.num_threads > 0 ? options.num_threads
                                                                          : NumAvailableCpus());
    ASSIGN_OR_RETURN(backend->forward_,
                     ForwardPass::Create(config, checkpoint, forward, backend->pool_.get()));
    backend->info_.num_parameters = backend->forward_->num_parameters();
    for (int32_t i = 0; i < backend->pool_->num_threads(); ++i) {
      backend->samplers_.emplace_back(config.vocab_size);
    }
    backend->final_norms_.resize(int64_t{backend->pool_->num_threads()} * config.hidden_size);
    return backend;
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "not enough memory for max_sequences = ", info.max_sequences,
        ", max_sequence_length = ", info.max_sequence_length, ", block_size = ", info.block_size));
  }
}

absl::Status CpuBackend::Launch(const Batch& batch) {
  if (outstanding_) {
    return absl::FailedPreconditionError(
        absl::StrCat("step ", batch.step, " launched before step ", step_, " was waited for"));
  }
  RETURN_IF_ERROR(slots_.Apply(batch));
  RETURN_IF_ERROR(slots_.Check(batch, static_cast<int32_t>(sampled_.size())));
  for (const SlotAssignment& assignment : batch.slot_assignments) {
    if (assignment.params->counts_tokens()) {
      counts_[assignment.slot.value].Reset(assignment.tokens, assignment.num_prompt_tokens);
    }
    if (assignment.pooling == Pooling::kMean) {
      const auto sum = pooled_sums_.begin() + int64_t{assignment.slot.value} * info_.hidden_size;
      std::fill_n(sum, info_.hidden_size, 0.0f);
    }
  }
  ResolveInputs(batch);
  PrepareSamples(batch);
  scores_.Clear();
  pooled_.clear();
  if (!batch.empty()) {
    ASSIGN_OR_RETURN(
        std::span<float> logits,
        forward_->Run(batch, token_ids_, slots_.block_tables(), slots_.blocks_per_slot()));
    Sample(batch, logits);
    RETURN_IF_ERROR(Score(batch));  // last of those that use the logits' buffer
    Pool(batch);
  }
  step_ = batch.step;
  outstanding_ = true;
  return absl::OkStatus();
}

absl::Status CpuBackend::Wait(StepResult* result) {
  if (!outstanding_) {
    return absl::FailedPreconditionError("no step is outstanding");
  }
  outstanding_ = false;
  result->step = step_;
  result->token_ids.assign(sampled_.begin(), sampled_.end());
  result->row_offsets.resize(sampled_.size() + 1);
  for (size_t row = 0; row < result->row_offsets.size(); ++row) {
    result->row_offsets[row] = static_cast<int32_t>(row);
  }
  result->logprobs.Clear();
  for (size_t row = 0; any_logprobs_ && row < sampled_.size(); ++row) {
    result->logprobs.Append(logprobs_[row], Top(row));
  }
  result->scores = scores_;
  result->pooled = pooled_;
  return absl::OkStatus();
}

void CpuBackend::ResolveInputs(const Batch& batch) {
  token_ids_.assign(batch.token_ids.begin(), batch.token_ids.end());
  for (int32_t s = 0; s < batch.num_sequences(); ++s) {
    if (batch.input_rows[s] != -1) {
      token_ids_[batch.cu_seqlens[s]] = sampled_[batch.input_rows[s]];
    }
  }
}

void CpuBackend::PrepareSamples(const Batch& batch) {
  sampled_.resize(batch.num_samples());
  logprobs_.assign(batch.num_samples(), std::numeric_limits<float>::quiet_NaN());
  num_logprobs_.clear();
  any_logprobs_ = false;
  for (const int32_t sequence : batch.sample_seqs) {
    num_logprobs_.push_back(slots_.params(batch.seq_slots[sequence]).num_logprobs);
    any_logprobs_ = any_logprobs_ || num_logprobs_.back() >= 0;
  }
}

void CpuBackend::Sample(const Batch& batch, std::span<float> logits) {
  const auto vocab_size = static_cast<size_t>(info_.vocab_size);
  pool_->ParallelFor(
      batch.num_samples(), SampleGrain(), [&](int64_t begin, int64_t end, int32_t thread) {
        for (int64_t row = begin; row < end; ++row) {
          SampleRow(row, batch.seq_slots[batch.sample_seqs[row]], batch.output_indices[row],
                    logits.subspan(row * vocab_size, vocab_size), &samplers_[thread]);
        }
      });
}

void CpuBackend::SampleRow(int64_t row, SeqSlot slot, int32_t output_index, std::span<float> logits,
                           Sampler* sampler) {
  const SamplingParams& params = slots_.params(slot);
  TokenCounts& counts = counts_[slot.value];
  sampled_[row] = sampler->Sample(logits, params, output_index, counts);
  if (params.counts_tokens()) {
    counts.AddOutput(sampled_[row]);
  }
  if (num_logprobs_[row] >= 0) {
    logprobs_[row] = Sampler::Logprobs(logits, sampled_[row], Top(row));
  }
}

// In pieces that the buffer of logits has room for.
absl::Status CpuBackend::Score(const Batch& batch) {
  const std::span<const ScoredToken> scored = batch.scored;
  scores_.own.resize(scored.size());
  scores_.top_offsets.assign(1, 0);
  for (const ScoredToken& token : scored) {
    const int32_t num_top = std::clamp(token.num_top, 0, info_.vocab_size);
    scores_.top_offsets.push_back(scores_.top_offsets.back() + num_top);
  }
  scores_.top.resize(scores_.top_offsets.back());
  const auto vocab_size = static_cast<size_t>(info_.vocab_size);
  for (size_t first = 0; first < scored.size(); first += info_.max_sequences) {
    const size_t count = std::min<size_t>(info_.max_sequences, scored.size() - first);
    scored_.clear();
    for (const ScoredToken& token : scored.subspan(first, count)) {
      scored_.push_back(token.token);
    }
    ASSIGN_OR_RETURN(const std::span<const float> logits, forward_->Logits(scored_));
    pool_->ParallelFor(count, SampleGrain(), [&](int64_t begin, int64_t end, int32_t) {
      for (int64_t row = begin; row < end; ++row) {
        const size_t i = first + row;
        const int32_t top = scores_.top_offsets[i];
        scores_.own[i] = Sampler::Logprobs(
            logits.subspan(row * vocab_size, vocab_size), scored[i].next,
            std::span(scores_.top).subspan(top, scores_.top_offsets[i + 1] - top));
      }
    });
  }
  return absl::OkStatus();
}

void CpuBackend::Pool(const Batch& batch) {
  const int64_t hidden = info_.hidden_size;
  const auto sums = [&](SeqSlot slot) { return slots_.pooling(slot) == Pooling::kMean; };
  if (std::any_of(batch.seq_slots.begin(), batch.seq_slots.end(), sums)) {
    pool_->ParallelFor(batch.num_sequences(), 1, [&](int64_t begin, int64_t end, int32_t thread) {
      for (int64_t s = begin; s < end; ++s) {
        if (sums(batch.seq_slots[s])) {
          AddToSum(batch, static_cast<int32_t>(s), thread);
        }
      }
    });
  }
  pooled_.resize(batch.pooled_seqs.size() * hidden);
  for (size_t e = 0; e < batch.pooled_seqs.size(); ++e) {
    const int32_t s = batch.pooled_seqs[e];
    float* const out = pooled_.data() + e * hidden;
    const SeqSlot slot = batch.seq_slots[s];
    if (slots_.pooling(slot) == Pooling::kLast) {
      forward_->FinalNorm(batch.cu_seqlens[s + 1] - 1, out);
      continue;
    }
    const float* const sum = pooled_sums_.data() + slot.value * hidden;
    const auto count = static_cast<float>(batch.kv_lens[s]);
    std::transform(sum, sum + hidden, out, [count](float value) { return value / count; });
  }
}

// Token by token, so that a sum is the same however its sequence is cut into chunks.
void CpuBackend::AddToSum(const Batch& batch, int32_t sequence, int32_t thread) {
  const int64_t hidden = info_.hidden_size;
  float* const sum = pooled_sums_.data() + batch.seq_slots[sequence].value * hidden;
  float* const row = final_norms_.data() + thread * hidden;
  for (int32_t t = batch.cu_seqlens[sequence]; t < batch.cu_seqlens[sequence + 1]; ++t) {
    forward_->FinalNorm(t, row);
    AddTo(row, hidden, sum);
  }
}

std::span<TokenLogprob> CpuBackend::Top(int64_t row) {
  const int32_t size = std::clamp(num_logprobs_[row], 0, info_.vocab_size);
  return std::span(top_).subspan(row * SamplingParams::kMaxLogprobs, size);
}

}  // namespace ferrite

#include "tests/testing/fake_backend.h"

#include <sys/prctl.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ferrite::test {

TokenSource HashedTokens(int32_t vocab_size) {
  return [vocab_size](std::span<const TokenId> context) {
    uint64_t hash = 1469598103934665603u;
    for (const TokenId token : context) {
      hash = (hash ^ static_cast<uint64_t>(token)) * 1099511628211u;
    }
    return static_cast<TokenId>((hash >> 20) % static_cast<uint64_t>(vocab_size));
  };
}

std::array<float, kFakeHiddenSize> FakeVector(std::span<const TokenId> context, TokenId source,
                                              Pooling pooling) {
  double sum = 0;
  for (const TokenId token : context) {
    sum += token;
  }
  return {static_cast<float>(context.size()), static_cast<float>(source),
          pooling == Pooling::kMean ? 1.0f : 0.0f,
          static_cast<float>(sum / static_cast<double>(context.size()))};
}

FakeBackend::FakeBackend(FakeBackendOptions options) : options_(std::move(options)) {
  info_.device = "fake";
  info_.compute_type = "none";
  info_.num_blocks = options_.num_blocks;
  info_.block_size = options_.block_size;
  info_.max_sequences = options_.max_sequences;
  info_.max_step_tokens = options_.max_step_tokens;
  info_.max_sequence_length = options_.max_sequence_length;
  info_.vocab_size = options_.vocab_size;
  info_.hidden_size = kFakeHiddenSize;
  info_.scores_tokens = true;
  info_.pools = true;
  info_.max_end_token_ids = options_.max_end_token_ids;
  info_.pipeline_depth = options_.pipeline_depth;
  kv_.assign(static_cast<size_t>(options_.num_blocks) * options_.block_size, -1);
  const int32_t table =
      (options_.max_sequence_length + options_.block_size - 1) / options_.block_size;
  tables_.assign(options_.max_sequences, std::vector<int32_t>(table, -1));
  num_logprobs_.assign(options_.max_sequences, -1);
  poolings_.assign(options_.max_sequences, Pooling::kNone);
  shared_.assign(options_.num_blocks, false);
  written_at_.assign(kv_.size(), 0);
  stats_.idle_seconds.reserve(1 << 16);
  device_ = std::thread([this] { RunDevice(); });
}

FakeBackend::~FakeBackend() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    hang_at_ = UINT64_MAX;
    changed_.notify_all();
  }
  device_.join();
}

absl::Status FakeBackend::Launch(const Batch& batch) {
  if (batch.step >= fail_launch_at_) {
    return absl::InternalError("the fake device refuses the step");
  }
  std::lock_guard lock(mutex_);
  if (batch.step != launched_ + 1) {
    return absl::InternalError("steps are launched out of order");
  }
  Step& step = steps_[batch.step % steps_.size()];
  step.batch = batch;
  step.launched = Clock::now();
  ++launched_;
  stats_.most_outstanding =
      std::max(stats_.most_outstanding, static_cast<int32_t>(launched_ - waited_));
  if (static_cast<int32_t>(launched_ - waited_) > options_.pipeline_depth) {
    return absl::InternalError("more steps are outstanding than the pipeline is deep");
  }
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status FakeBackend::Wait(StepResult* result) {
  options_.before_wait();
  std::unique_lock lock(mutex_);
  if (waited_ == launched_) {
    return absl::FailedPreconditionError("no step is outstanding");
  }
  changed_.wait(lock, [&] { return computed_ > waited_; });
  ++waited_;
  const Step& step = steps_[waited_ % steps_.size()];
  if (step.batch.step >= fail_wait_at_) {
    return absl::InternalError("the fake device broke");
  }
  result->step = step.batch.step;
  result->token_ids.assign(step.tokens.begin(), step.tokens.end());
  result->row_offsets.resize(step.tokens.size() + 1);
  for (size_t row = 0; row <= step.tokens.size(); ++row) {
    result->row_offsets[row] = static_cast<int32_t>(row);
  }
  result->logprobs = step.logprobs;
  result->scores = step.scores;
  result->pooled = step.pooled;
  options_.after_wait();
  return absl::OkStatus();
}

void FakeBackend::HangAt(uint64_t step) {
  std::lock_guard lock(mutex_);
  hang_at_ = step;
  changed_.notify_all();
}

void FakeBackend::ReleaseHang() { HangAt(UINT64_MAX); }

FakeBackendStats FakeBackend::stats() {
  std::lock_guard lock(mutex_);
  return stats_;
}

void FakeBackend::RunDevice() {
  prctl(PR_SET_TIMERSLACK, 1000);  // a device does not oversleep by 50 microseconds
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock,
                  [&] { return closed_ || (launched_ > computed_ && computed_ + 1 < hang_at_); });
    if (closed_) {
      return;
    }
    Step& step = steps_[(computed_ + 1) % steps_.size()];
    const Clock::time_point start = std::max(device_free_, step.launched);
    if (device_free_ != Clock::time_point()) {
      stats_.idle_seconds.push_back(SecondsBetween(device_free_, start));
    }
    lock.unlock();
    Compute(step);
    device_free_ = start + options_.step_time;
    if (options_.step_time.count() > 0) {
      std::this_thread::sleep_until(device_free_);
    } else {
      device_free_ = Clock::now();
    }
    lock.lock();
    ++computed_;
    ++stats_.steps;
    changed_.notify_all();
  }
}

void FakeBackend::Compute(Step& step) {
  const Batch& batch = step.batch;
  if (options_.check_kv) {
    std::lock_guard lock(mutex_);
    stats_.largest_step_tokens = std::max(stats_.largest_step_tokens, batch.num_tokens());
    stats_.largest_step_sequences = std::max(stats_.largest_step_sequences, batch.num_sequences());
    if (batch.num_tokens() > options_.max_step_tokens) {
      stats_.problems.push_back(absl::StrCat("step of ", batch.num_tokens(), " tokens"));
    }
  }
  ApplyChanges(batch);
  for (int32_t s = 0; s < batch.num_sequences(); ++s) {
    CheckAndWrite(batch, s);
  }
  Sample(step);
  ScoreAndPool(step);
  previous_tokens_ = step.tokens;
}

std::span<const TokenId> FakeBackend::Context(const Batch& batch, int32_t sequence,
                                              int32_t length) {
  context_.clear();
  if (options_.check_kv) {
    const std::vector<int32_t>& table = tables_[batch.seq_slots[sequence].value];
    for (int32_t position = 0; position < length; ++position) {
      context_.push_back(kv_[table[position / options_.block_size] * options_.block_size +
                             position % options_.block_size]);
    }
  } else {
    context_.push_back(InputToken(batch, sequence, batch.cu_seqlens[sequence + 1] - 1));
  }
  return context_;
}

void FakeBackend::Sample(Step& step) {
  step.tokens.clear();
  step.logprobs.Clear();
  bool any = false;
  for (const int32_t s : step.batch.sample_seqs) {
    const int32_t num_top = num_logprobs_[step.batch.seq_slots[s].value];
    any = any || num_top >= 0;
    const TokenId token = options_.source(Context(step.batch, s, step.batch.kv_lens[s]));
    step.tokens.push_back(token);
    std::vector<TokenLogprob> top;
    for (int32_t i = 0; i < num_top; ++i) {
      top.push_back(FakeTop(token, i, options_.vocab_size));
    }
    step.logprobs.Append(FakeLogprob(token, token), top);
  }
  if (!any) {
    step.logprobs.Clear();
  }
}

void FakeBackend::ScoreAndPool(Step& step) {
  const Batch& batch = step.batch;
  step.scores.Clear();
  for (const ScoredToken& scored : batch.scored) {
    const auto after =
        std::upper_bound(batch.cu_seqlens.begin(), batch.cu_seqlens.end(), scored.token);
    const auto s = static_cast<int32_t>(after - batch.cu_seqlens.begin()) - 1;
    const TokenId source = options_.source(Context(batch, s, batch.positions[scored.token] + 1));
    std::vector<TokenLogprob> top;
    for (int32_t i = 0; i < scored.num_top; ++i) {
      top.push_back(FakeTop(source, i, options_.vocab_size));
    }
    step.scores.Append(FakeLogprob(source, scored.next), top);
  }
  step.pooled.clear();
  for (const int32_t s : batch.pooled_seqs) {
    const Pooling pooling = poolings_[batch.seq_slots[s].value];
    if (pooling == Pooling::kNone) {
      Problem("a sequence without pooling is pooled");
    }
    const std::span<const TokenId> context = Context(batch, s, batch.kv_lens[s]);
    const auto vector = FakeVector(context, options_.source(context), pooling);
    step.pooled.insert(step.pooled.end(), vector.begin(), vector.end());
  }
}

// A sequence that starts behind the block's last position finds the tokens there already.
bool FakeBackend::IsSharedPrefix(const Batch& batch, const BlockTableChange& change) {
  const auto assigned =
      std::find_if(batch.slot_assignments.begin(), batch.slot_assignments.end(),
                   [&](const SlotAssignment& a) { return a.slot.value == change.slot.value; });
  if (assigned == batch.slot_assignments.end()) {
    return false;
  }
  int32_t first = 0;
  for (int32_t s = 0; s < batch.num_sequences(); ++s) {
    if (batch.seq_slots[s].value == change.slot.value) {
      first = batch.positions[batch.cu_seqlens[s]];
    }
  }
  return first >= (change.index + 1) * options_.block_size;
}

void FakeBackend::ApplyChanges(const Batch& batch) {
  for (const SlotAssignment& assignment : batch.slot_assignments) {
    std::vector<int32_t>& table = tables_[assignment.slot.value];
    std::fill(table.begin(), table.end(), -1);
    num_logprobs_[assignment.slot.value] = assignment.params->num_logprobs;
    poolings_[assignment.slot.value] = assignment.pooling;
  }
  for (const BlockTableChange& change : batch.block_table_changes) {
    tables_[change.slot.value][change.index] = change.block.value;
    if (!options_.check_kv) {
      continue;
    }
    shared_[change.block.value] = IsSharedPrefix(batch, change);
    if (!shared_[change.block.value]) {
      // The block is new to this sequence: nothing of its former owner may be read.
      std::fill_n(kv_.begin() + change.block.value * options_.block_size, options_.block_size, -1);
    }
  }
}

TokenId FakeBackend::InputToken(const Batch& batch, int32_t sequence, int32_t token) const {
  const int32_t row = batch.input_rows[sequence];
  return row < 0 ? batch.token_ids[token] : previous_tokens_[row];
}

void FakeBackend::CheckAndWrite(const Batch& batch, int32_t sequence) {
  const std::vector<int32_t>& table = tables_[batch.seq_slots[sequence].value];
  const int32_t first = batch.cu_seqlens[sequence];
  const int32_t end = batch.cu_seqlens[sequence + 1];
  const int32_t row = batch.input_rows[sequence];
  if (options_.check_kv) {
    if (end <= first || batch.positions[end - 1] + 1 != batch.kv_lens[sequence]) {
      Problem("kv_len does not follow from the positions");
    }
    if (row >= 0 && (end - first != 1 || row >= static_cast<int32_t>(previous_tokens_.size()))) {
      Problem("input_row of a chunk, or beyond the rows of the step before");
      return;
    }
  }
  for (int32_t token = first; token < end; ++token) {
    const int32_t position = batch.positions[token];
    const int32_t block = table[position / options_.block_size];
    const int32_t slot = block * options_.block_size + position % options_.block_size;
    if (options_.check_kv && (block < 0 || slot != batch.slot_mapping[token])) {
      Problem("slot_mapping disagrees with the block table");
      return;
    }
    if (shared_[block]) {
      Problem("a shared block is written");
    }
    kv_[slot] = InputToken(batch, sequence, token);
    written_at_[slot] = batch.step;
  }
  if (!options_.check_kv) {
    return;
  }
  for (int32_t position = 0; position < batch.kv_lens[sequence]; ++position) {
    const int32_t block = table[position / options_.block_size];
    const int32_t slot = block * options_.block_size + position % options_.block_size;
    if (block < 0 || kv_[slot] < 0) {
      Problem("a position of the context was never written");
      return;
    }
    if (position < batch.positions[first] && written_at_[slot] == batch.step) {
      Problem("a sequence reads what the same step writes for another");
      return;
    }
  }
}

void FakeBackend::Problem(const std::string& what) {
  std::lock_guard lock(mutex_);
  stats_.problems.push_back(what);
}

}  // namespace ferrite::test

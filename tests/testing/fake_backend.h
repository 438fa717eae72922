// A backend without a model: a device thread that takes its time, a KV pool that holds token ids,
// and tokens from a script.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "engine/backend.h"
#include "engine/clock.h"

namespace ferrite::test {

// The next token of a sequence, given all tokens before it (prompt and output so far).
using TokenSource = std::function<TokenId(std::span<const TokenId> context)>;

// Tokens below `vocab_size` that depend on every token before: an error anywhere changes them.
TokenSource HashedTokens(int32_t vocab_size);

// What the fake device says of `next` after a context to which its source answers `source`, and of
// the i-th likeliest there.
inline float FakeLogprob(TokenId source, TokenId next) {
  return next == source ? -1.0f : -2.0f - 1e-3f * static_cast<float>(next);
}
inline TokenLogprob FakeTop(TokenId source, int32_t i, int32_t vocab_size) {
  return {(source + i) % vocab_size, -1.0f - static_cast<float>(i)};
}

// The vector of a context: its length, what the source answers to it, the pooling and the mean of
// its tokens. One token's worth of the KV pool read wrong changes it.
inline constexpr int32_t kFakeHiddenSize = 4;
std::array<float, kFakeHiddenSize> FakeVector(std::span<const TokenId> context, TokenId source,
                                              Pooling pooling);

struct FakeBackendOptions {
  int32_t num_blocks = 64;
  int32_t block_size = 4;
  int32_t max_sequences = 16;
  int32_t max_step_tokens = 64;
  int32_t max_sequence_length = 128;
  int32_t vocab_size = 512;
  int32_t max_end_token_ids = INT32_MAX;
  int32_t pipeline_depth = 2;
  std::chrono::nanoseconds step_time{0};
  TokenSource source = HashedTokens(512);
  // Rebuilds every context from the KV pool through the block table, and checks what a real kernel
  // would take on trust. Off for benchmarks, where `source` then sees only the last token.
  bool check_kv = true;
  // Called on the worker's thread as Wait begins and as it ends.
  std::function<void()> before_wait = [] {};
  std::function<void()> after_wait = [] {};
};

// What went by, for tests and benchmarks. Read after the worker has gone idle.
struct FakeBackendStats {
  uint64_t steps = 0;
  int32_t most_outstanding = 0;
  int32_t largest_step_tokens = 0;
  int32_t largest_step_sequences = 0;
  std::vector<double> idle_seconds;   // per step: the device had nothing to do before it
  std::vector<std::string> problems;  // broken rules of the Batch contract
};

class FakeBackend final : public Backend {
 public:
  explicit FakeBackend(FakeBackendOptions options);
  ~FakeBackend() override;

  const BackendInfo& info() const override { return info_; }
  absl::Status Launch(const Batch& batch) override;
  absl::Status Wait(StepResult* result) override;

  // From this step on, Wait (or Launch) fails.
  void FailWaitAt(uint64_t step) { fail_wait_at_ = step; }
  void FailLaunchAt(uint64_t step) { fail_launch_at_ = step; }
  // From this step on the device hangs, until released. One that hangs already goes on to `step`.
  void HangAt(uint64_t step);
  void ReleaseHang();

  FakeBackendStats stats();

 private:
  struct Step {
    Batch batch;
    std::vector<TokenId> tokens;
    LogprobList logprobs;
    LogprobList scores;
    std::vector<float> pooled;
    Clock::time_point launched;
  };

  void RunDevice();
  void Compute(Step& step);
  void ApplyChanges(const Batch& batch);
  // The first `length` tokens of the sequence, from the KV pool.
  std::span<const TokenId> Context(const Batch& batch, int32_t sequence, int32_t length);
  void Sample(Step& step);
  void ScoreAndPool(Step& step);
  bool IsSharedPrefix(const Batch& batch, const BlockTableChange& change);
  TokenId InputToken(const Batch& batch, int32_t sequence, int32_t token) const;
  void CheckAndWrite(const Batch& batch, int32_t sequence);
  void Problem(const std::string& what);

  const FakeBackendOptions options_;
  BackendInfo info_;
  std::atomic<uint64_t> fail_wait_at_{UINT64_MAX};
  std::atomic<uint64_t> fail_launch_at_{UINT64_MAX};
  std::atomic<uint64_t> hang_at_{UINT64_MAX};

  // The device's own.
  std::vector<TokenId> kv_;                   // [num_blocks * block_size]
  std::vector<std::vector<int32_t>> tables_;  // by slot
  std::vector<int32_t> num_logprobs_;         // by slot
  std::vector<Pooling> poolings_;             // by slot
  std::vector<bool> shared_;                  // by block: two sequences have it, none may write
  std::vector<uint64_t> written_at_;          // by slot of the KV pool: the step
  std::vector<TokenId> context_;              // scratch
  std::vector<TokenId> previous_tokens_;      // by sample row of the step before
  Clock::time_point device_free_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::array<Step, 2> steps_;  // step s is at s % 2
  uint64_t launched_ = 0;
  uint64_t computed_ = 0;
  uint64_t waited_ = 0;
  bool closed_ = false;
  FakeBackendStats stats_;
  std::thread device_;
};

}  // namespace ferrite::test

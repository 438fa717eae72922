// What a worker counts of its steps and requests, for metrics.
#pragma once

#include <array>
#include <cstdint>

#include "engine/batch.h"
#include "engine/clock.h"
#include "engine/histogram.h"
#include "engine/sequence.h"

namespace ferrite {

// What the sequences of a step compute: a decode has one token, anything longer is of a prompt.
enum class StepPhase { kDecode, kPrefill, kMixed };
inline constexpr std::array<const char*, 3> kStepPhaseNames = {"decode", "prefill", "mixed"};

// How a request ended in its worker.
enum class RequestEnd { kStop, kLength, kAborted, kEmbedded, kCancelled, kDeadline, kFailed };
inline constexpr std::array<const char*, 7> kRequestEndNames = {
    "stop", "length", "aborted", "embedded", "cancelled", "deadline", "failed"};

StepPhase PhaseOf(const Batch& batch);
// Of a sequence that has finished.
RequestEnd EndOf(const Sequence& sequence);

// Upper bounds of the histograms' ranges, in seconds and in tokens.
inline constexpr std::array<double, 17> kLatencyBounds = {
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 80, 160};
inline constexpr std::array<double, 16> kDurationBounds = {
    0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640};
// Steps of fast GPUs are told apart to the millisecond.
inline constexpr std::array<double, 21> kTokenGapBounds = {
    0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03,
    0.04,   0.05,  0.075, 0.1,   0.15,  0.2,   0.3,    0.5,  1,     5};
inline constexpr std::array<double, 20> kStepBounds = {
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01,
    0.015,  0.02,   0.03,   0.05,  0.1,   0.2,   0.5,   1,     2,      5};
inline constexpr std::array<double, 18> kTokenBounds = {
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072};

// Written by the worker's thread, without locks or allocation; read by any. A request here is what
// the worker runs: each sample of a prompt, each input of an embedding call.
class WorkerStats {
 public:
  // The worker's step begins, and the oldest outstanding one has ended.
  void OnLaunched(const Batch& batch, Clock::time_point now);
  void OnCompleted(const StepResult& result, Clock::time_point now);
  // Once its output has been handed out.
  void OnHandedOut() { FlushGaps(); }

  // The next token of a sequence has come and is about to be accepted.
  void OnToken(const Sequence& sequence, Clock::time_point now);
  // A sequence has started, or ended without.
  void OnLeftWaiting(const Sequence& sequence);
  void OnFinished(const Sequence& sequence);

  // --- what was counted ---

  std::array<Histogram, 3> step_seconds = {Histogram(kStepBounds), Histogram(kStepBounds),
                                           Histogram(kStepBounds)};  // by StepPhase
  Histogram step_tokens{kTokenBounds};
  SingleWriter<uint64_t> graph_steps;
  SingleWriter<uint64_t> eager_steps;
  Histogram queue_seconds{kLatencyBounds};
  Histogram first_token_seconds{kLatencyBounds};
  Histogram token_gap_seconds{kTokenGapBounds};
  Histogram request_seconds{kDurationBounds};
  Histogram request_prompt_tokens{kTokenBounds};      // of prompts, once for all samples
  Histogram request_generation_tokens{kTokenBounds};  // of requests that generate
  SingleWriter<uint64_t> prompt_tokens;
  SingleWriter<uint64_t> generation_tokens;
  std::array<SingleWriter<uint64_t>, kRequestEndNames.size()> finished;  // by RequestEnd
  SingleWriter<uint64_t> prefix_queried_tokens;  // of prompts looked up in the prefix cache
  SingleWriter<uint64_t> prefix_hit_tokens;

 private:
  struct Launched {
    Clock::time_point at;
    StepPhase phase = StepPhase::kDecode;
    int32_t tokens = 0;
  };
  void FlushGaps();

  std::array<Launched, 2> launched_;  // the oldest outstanding step first
  size_t outstanding_ = 0;
  Clock::time_point last_end_;
  // Sequences that decode together mostly have the same gap: counted first, observed once.
  Clock::duration gap_{0};
  uint64_t gaps_ = 0;
};

}  // namespace ferrite

// The requests of a benchmark.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "client/bench_workload.h"
#include "ferrite/v1/control.pb.h"
#include "ferrite/v1/inference.pb.h"

namespace ferrite {

// Makes turn `t` of conversation `i` of a workload from nothing but the workload, the model's
// vocabulary, i, t and what was said before: random token ids as the prompt and, where the
// temperature is not 0, a random sampling seed. The model's BOS and end tokens are not drawn.
// Thread-safe.
class BenchRequests {
 public:
  // Lengths are those of `dataset`, in its order and again from its start, unless it is empty:
  // entries that do not fit the model's context are left out. OutOfRange if prompt and output may
  // not fit the context; FailedPrecondition if the vocabulary leaves nothing to draw.
  static absl::StatusOr<BenchRequests> Create(const BenchWorkload& workload,
                                              const v1::GetModelInfoResponse& model,
                                              std::vector<BenchLengths> dataset = {});

  // Asks for an exact number of tokens: the model's end tokens do not end it. `before` is the
  // prompt and the answer of the turn before. Nothing if there is no such turn, or a later turn no
  // longer fits the context.
  std::optional<v1::GenerateRequest> Make(int64_t index, int32_t turn = 0,
                                          const std::vector<int32_t>& before = {}) const;

 private:
  BenchRequests(const BenchWorkload& workload, std::vector<BenchLengths> dataset)
      : workload_(workload), dataset_(std::move(dataset)) {}

  BenchLengths Draw(int64_t index, int32_t turn, std::mt19937_64* random) const;
  void AddIds(int32_t count, std::mt19937_64* random, v1::TokenIds* ids) const;

  BenchWorkload workload_;
  std::vector<BenchLengths> dataset_;
  std::vector<int32_t> special_;  // ascending
  int32_t num_ordinary_ = 0;      // ids of the vocabulary that are not special
  int64_t context_length_ = 0;
};

}  // namespace ferrite

// The requests of a benchmark.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "ferrite/v1/control.pb.h"
#include "ferrite/v1/inference.pb.h"

namespace ferrite {

struct BenchWorkload {
  int32_t prompt_tokens = 128;
  int32_t output_tokens = 128;
  uint64_t seed = 0;
  double temperature = 0;
  std::optional<std::string> model;
};

// Makes request `i` of a workload from nothing but the workload, the model's vocabulary and i:
// random token ids as the prompt and, where the temperature is not 0, a random sampling seed. The
// model's BOS and end tokens are not drawn. Thread-safe.
class BenchRequests {
 public:
  // OutOfRange if prompt and output do not fit the model's context; FailedPrecondition if the
  // vocabulary leaves nothing to draw.
  static absl::StatusOr<BenchRequests> Create(const BenchWorkload& workload,
                                              const v1::GetModelInfoResponse& model);

  // Asks for exactly output_tokens: the model's end tokens do not end it.
  v1::GenerateRequest Make(int64_t index) const;

 private:
  BenchRequests(const BenchWorkload& workload, std::vector<int32_t> special, int32_t num_ordinary)
      : workload_(workload), special_(std::move(special)), num_ordinary_(num_ordinary) {}

  BenchWorkload workload_;
  std::vector<int32_t> special_;  // ascending
  int32_t num_ordinary_;          // ids of the vocabulary that are not special
};

}  // namespace ferrite

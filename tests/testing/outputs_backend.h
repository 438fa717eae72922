// Backends for the suites of what a step gives beside plainly sampled tokens (adjust_suite.cc,
// score_pool_suite.cc): a test program supplies what is declared here.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "engine/backend.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"

namespace ferrite::test {

struct OutputsVariant {
  std::string name;  // letters and digits
  bool graphs = false;
  double tolerance = 0;  // of a logit, against the reference's
};

inline void PrintTo(const OutputsVariant& variant, std::ostream* out) { *out << variant.name; }

// What the backends must have room for.
struct OutputsSizes {
  static constexpr int32_t kNumBlocks = 512;
  static constexpr int32_t kBlockSize = 4;
  static constexpr int32_t kMaxSequences = 6;
  static constexpr int32_t kMaxStepTokens = 128;
};

std::vector<OutputsVariant> OutputsVariants();
bool OutputsDeviceIsThere();
std::unique_ptr<Backend> CreateOutputsBackend(const OutputsVariant& variant,
                                              const ModelConfig& config,
                                              const Checkpoint& checkpoint);

// The logits [num_samples, vocab_size] of the step waited for last, while none is outstanding; none
// if the backend does not show them.
std::optional<std::vector<float>> OutputsLogits(const Backend& backend);

}  // namespace ferrite::test

// Backends for suites of tests that run on any (golden_suite.cc, smollm2_suite.cc): a test program
// supplies what is declared here.
#pragma once

#include <cstdint>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"

namespace ferrite::test {

struct SuiteVariant {
  std::string name;  // letters, digits and underscores
  std::string compute_type;
  bool graphs = false;
};

inline void PrintTo(const SuiteVariant& variant, std::ostream* out) { *out << variant.name; }

struct SuiteSizes {
  int32_t num_blocks = 1;
  int32_t block_size = 16;
  int32_t max_sequences = 1;
  int32_t max_step_tokens = 1;
};

// What the program under test has.
std::vector<SuiteVariant> SuiteVariants();
bool SuiteDeviceIsThere();
absl::StatusOr<std::unique_ptr<Backend>> CreateSuiteBackend(const SuiteVariant& variant,
                                                            const ModelConfig& config,
                                                            const Checkpoint& checkpoint,
                                                            const SuiteSizes& sizes);

// From which lead on the reference's token must be ours, where rounding to `compute_type` can move
// the lead of one logit over another (the design's "How we count").
inline double SureLead(const std::string& compute_type) {
  return compute_type == "fp32" ? 0.0 : 0.05;
}

}  // namespace ferrite::test

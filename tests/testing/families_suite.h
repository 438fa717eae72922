// Every model family and option against transformers (tests/fixtures/models/make_models.py), on any
// backend: the tests are in families_suite.cc, and a test program supplies what is declared here.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/ids.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"

namespace ferrite {

struct FamilyType {
  std::string name;            // "fp32", "fp16", "bf16"
  double tolerance = 0;        // of a row's relative error
  bool exact = false;          // greedy choices are the reference's, however close they were
  bool deterministic = false;  // logits are the same bits however a sequence is run
};

// A model that can be fed in steps of several sequences.
class FamilyModel {
 public:
  static constexpr int32_t kMaxSequences = 4;
  static constexpr int32_t kMaxStepTokens = 100;
  static constexpr int32_t kNumBlocks = 192;
  static constexpr int32_t kBlockSize = 4;

  virtual ~FamilyModel() = default;

  // Begins a sequence anew, with nothing in its cache.
  virtual void Assign(int32_t slot) = 0;
  // Adds tokens to the step, and asks for the logits after the last one.
  virtual void Append(int32_t slot, std::span<const TokenId> tokens) = 0;
  // The logits asked for, in the order of the Appends.
  virtual std::vector<std::vector<float>> Run() = 0;
};

// What the program under test has.
std::vector<FamilyType> FamilyTypes();
bool FamilyDeviceIsThere();
std::unique_ptr<FamilyModel> CreateFamilyModel(const ModelConfig& config,
                                               const Checkpoint& checkpoint,
                                               const FamilyType& type);

// Blocks in an order in which no two neighbours of a sequence are neighbours in the pool.
std::vector<int32_t> ScatteredBlocks(int32_t num_blocks);

}  // namespace ferrite

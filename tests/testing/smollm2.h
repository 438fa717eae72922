// SmolLM2-135M-Instruct and what transformers and llama.cpp make of it (tests/fixtures/smollm2).
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"
#include "gtest/gtest.h"
#include "tests/testing/teacher_forcing.h"

namespace ferrite::test {

// Why there is nothing to test, or that there is (empty). scripts/get_smollm2.py gets the model.
std::string NoSmolLm2();

// Opens the model once for all tests of a suite. A test's SetUp calls Load, and skips if there is
// nothing to test.
class SmolLm2 {
 public:
  // Fails the test unless the weights are those that the references were made with.
  void Load();

  const nlohmann::json& references() const { return references_; }
  const ModelConfig& config() const { return config_; }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  // transformers' greedy continuations, 64 tokens of each of 20 prompts.
  const std::vector<ReferenceText>& texts() const { return texts_; }

 private:
  nlohmann::json references_;
  ModelConfig config_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<ReferenceText> texts_;
};

}  // namespace ferrite::test

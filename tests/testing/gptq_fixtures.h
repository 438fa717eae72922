// The linears and models of tests/fixtures/gptq: those committed, and those made when building.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/model/checkpoint.h"
#include "engine/model/gptq.h"

namespace ferrite::test {

struct GptqFixture {
  std::string file;
  GptqConfig config;
  int64_t inputs = 0;
  int64_t outputs = 0;
  std::unique_ptr<Checkpoint> checkpoint;
  GptqTensors tensors;  // of `checkpoint`

  // The bytes of tensor `name`: "expected.fp16" and "expected.bf16" are the weights.
  std::string Bytes(const std::string& name) const;
};

inline constexpr size_t kNumGptqFixtures = 8 + 33;

// Fails the test for one that cannot be read.
std::vector<GptqFixture> LoadGptqFixtures();

// The folders of the tiny models.
std::vector<std::string> GptqModelFolders();

}  // namespace ferrite::test

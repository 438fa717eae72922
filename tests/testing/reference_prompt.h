// A prompt of a tiny model with the logits that transformers computes at its every position.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/ids.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"
#include "gtest/gtest.h"

namespace ferrite::test {

struct ReferencePrompt {
  ModelConfig config;
  std::unique_ptr<Checkpoint> checkpoint;
  std::vector<TokenId> tokens;
  std::vector<float> logits;  // [tokens, vocab]

  int32_t size() const { return static_cast<int32_t>(tokens.size()); }
  int32_t vocab_size() const { return config.vocab_size; }
  std::span<const float> Logits(int32_t position) const {
    return std::span(logits).subspan(int64_t{position} * config.vocab_size, config.vocab_size);
  }

  // In float64.
  std::vector<double> LogSoftmax(int32_t position) const {
    const std::span<const float> row = Logits(position);
    double total = 0;
    for (const float logit : row) {
      total += std::exp(double{logit});
    }
    std::vector<double> logprobs(row.begin(), row.end());
    for (double& logprob : logprobs) {
      logprob -= std::log(total);
    }
    return logprobs;
  }
};

template <typename T>
std::vector<T> ReadReferenceTensor(const Checkpoint& file, const std::string& name) {
  const std::span<const std::byte> data = file.Find(name)->data;
  std::vector<T> values(data.size() / sizeof(T));
  std::memcpy(values.data(), data.data(), data.size());
  return values;
}

inline ReferencePrompt LoadReferencePrompt() {
  const std::string folder = FERRITE_SOURCE_DIR "/tests/fixtures/models/llama31";
  ReferencePrompt prompt;
  prompt.config = LoadModelConfig(folder).value();
  prompt.checkpoint = Checkpoint::Open(folder).value();
  const auto reference = Checkpoint::Open(folder + "/reference").value();
  prompt.tokens = ReadReferenceTensor<TokenId>(*reference, "tokens.1");
  prompt.logits = ReadReferenceTensor<float>(*reference, "logits.1");
  EXPECT_EQ(prompt.logits.size(), prompt.tokens.size() * size_t(prompt.config.vocab_size));
  return prompt;
}

// All blocks, in an order in which no two neighbours are neighbours in the pool.
inline std::vector<int32_t> SpreadBlocks(int32_t num_blocks) {
  std::vector<int32_t> blocks;
  for (int32_t first = 0; first < 3; ++first) {
    for (int32_t block = first; block < num_blocks; block += 3) {
      blocks.push_back(block);
    }
  }
  return blocks;
}

}  // namespace ferrite::test

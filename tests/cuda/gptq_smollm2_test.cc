// SmolLM2-135M-Instruct in 4 bits, by both ways of multiplying. It is made from the model that
// scripts/get_smollm2.py gets:
//   scripts/quantize_gptq.py --model models/smollm2-135m-instruct --group-size 64
//     --out models/smollm2-135m-instruct-gptq-g64
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cpu/forward.h"
#include "cpu/thread_pool.h"
#include "cuda/cuda_backend.h"
#include "engine/slot_table.h"
#include "tests/cuda/gpu_test.h"
#include "tests/engine/model/status_matchers.h"
#include "tests/testing/paged_batch.h"
#include "tests/testing/teacher_forcing.h"

namespace ferrite {
namespace {

using test::IsOk;
using Tokens = std::vector<TokenId>;
// Runs a batch and returns its logits.
using Runner = std::function<std::vector<float>(const Batch&)>;

constexpr char kFolder[] = FERRITE_SOURCE_DIR "/models/smollm2-135m-instruct-gptq-g64";
constexpr int32_t kBlockSize = 16;
constexpr int32_t kLinears = 30 * 7;

int32_t Blocks(int32_t sequences, int32_t length) {
  return sequences * ((length + kBlockSize - 1) / kBlockSize);
}

class GptqSmolLm2Test : public test::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) {
      return;
    }
    if (!std::filesystem::exists(kFolder)) {
      GTEST_SKIP() << "there is no " << kFolder;
    }
    std::ifstream file(FERRITE_SOURCE_DIR "/tests/fixtures/smollm2/references.json");
    references_ = nlohmann::json::parse(file);
    config_ = LoadModelConfig(kFolder).value();
    checkpoint_ = Checkpoint::Open(kFolder).value();
  }

  std::unique_ptr<CudaBackend> Gpu(const std::string& type, bool fused, int32_t max_sequences,
                                   int32_t num_blocks, int32_t max_length) {
    auto backend = CudaBackend::Create(config_, *checkpoint_,
                                       {.compute_type = type,
                                        .num_blocks = num_blocks,
                                        .block_size = kBlockSize,
                                        .max_sequences = max_sequences,
                                        .max_step_tokens = 1024,
                                        .max_sequence_length = max_length,
                                        .progress = {},
                                        .fused_int4 = fused});
    EXPECT_THAT(backend, IsOk());
    EXPECT_EQ((*backend)->weights().int4.fused, fused ? kLinears : 0);
    EXPECT_EQ((*backend)->weights().int4.dequantized, fused ? 0 : kLinears);
    return *std::move(backend);
  }

  double MeanNll(int32_t segments, int32_t length, const Runner& run) const;
  std::vector<test::ReferenceText> Continue(CudaBackend* backend) const;

  nlohmann::json references_;  // its prompts and its text, not what they lead to
  ModelConfig config_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

// Mean negative log-likelihood of the references' text cut into segments, each of which is a
// sequence; all get a token a step.
double GptqSmolLm2Test::MeanNll(int32_t segments, int32_t length, const Runner& run) const {
  const Tokens text = references_["mean_nll"]["tokens"];
  const auto token = [&](int32_t segment, int32_t position) {
    return text[static_cast<size_t>(segment * length + position)];
  };
  const SamplingParams params;
  std::vector<int32_t> blocks(static_cast<size_t>(Blocks(segments, length)));
  std::iota(blocks.begin(), blocks.end(), 0);
  PagedBatch paged(kBlockSize, blocks);
  double sum = 0;
  for (int32_t position = 0; position + 1 < length; ++position) {
    paged.NextStep();
    for (int32_t segment = 0; segment < segments; ++segment) {
      if (position == 0) {
        paged.Assign(segment, params);
      }
      const TokenId next = token(segment, position);
      paged.Append(segment, std::span(&next, 1), /*sample=*/true);
    }
    const std::vector<float> logits = run(paged.batch());
    const auto vocab = static_cast<size_t>(config_.vocab_size);
    for (int32_t segment = 0; segment < segments; ++segment) {
      const auto row = std::span(logits).subspan(static_cast<size_t>(segment) * vocab, vocab);
      double total = 0;
      for (const float logit : row) {
        total += std::exp(static_cast<double>(logit));
      }
      sum += std::log(total) - row[static_cast<size_t>(token(segment, position + 1))];
    }
  }
  return sum / (segments * (length - 1));
}

TEST_F(GptqSmolLm2Test, PerplexityIsThatOfTheCpu) {
  // As many rows as are streamed, multiplied by Int4Matmul, and dequantised.
  for (const auto& [segments, length] : {std::pair{8, 125}, {100, 20}, {400, 5}}) {
    BackendInfo info;
    info.num_blocks = Blocks(segments, length);
    info.block_size = kBlockSize;
    info.max_sequences = info.max_step_tokens = segments;
    info.max_sequence_length = length;
    info.vocab_size = config_.vocab_size;
    ThreadPool pool(8);
    SlotTable slots(info);
    const auto cpu = ForwardPass::Create(config_, *checkpoint_,
                                         {.compute_type = ComputeType::kFp32,
                                          .num_blocks = info.num_blocks,
                                          .block_size = info.block_size,
                                          .max_sequences = info.max_sequences,
                                          .max_step_tokens = info.max_step_tokens,
                                          .max_sequence_length = info.max_sequence_length},
                                         &pool)
                         .value();
    const double expected = MeanNll(segments, length, [&](const Batch& batch) {
      EXPECT_THAT(slots.Apply(batch), IsOk());
      const auto logits =
          cpu->Run(batch, batch.token_ids, slots.block_tables(), slots.blocks_per_slot()).value();
      return std::vector<float>(logits.begin(), logits.end());
    });
    for (const std::string type : {"fp16", "bf16"}) {
      for (const bool fused : {true, false}) {
        const auto gpu = Gpu(type, fused, segments, info.num_blocks, length);
        const double actual = MeanNll(segments, length, [&](const Batch& batch) {
          EXPECT_THAT(gpu->Launch(batch), IsOk());
          StepResult result;
          EXPECT_THAT(gpu->Wait(&result), IsOk());
          return gpu->ReadLogits().value();
        });
        const double ratio = std::exp(actual - expected);
        EXPECT_NEAR(ratio, 1, 5e-3) << type << ", fused " << fused << ", " << segments << " rows";
        std::cout << "  " << type << (fused ? " fused, " : " dequantised, ") << segments
                  << " rows: perplexity " << std::exp(actual) << ", the CPU's times " << ratio
                  << "\n";
      }
    }
  }
}

// Greedy continuations of the 20 prompts, with the leads of their tokens.
std::vector<test::ReferenceText> GptqSmolLm2Test::Continue(CudaBackend* backend) const {
  constexpr int32_t kTokens = 64;
  std::vector<int32_t> blocks(static_cast<size_t>(backend->info().num_blocks));
  std::iota(blocks.begin(), blocks.end(), 0);
  PagedBatch paged(kBlockSize, blocks);
  SamplingParams greedy;
  greedy.temperature = 0;
  std::vector<test::ReferenceText> texts;
  for (const nlohmann::json& prompt : references_["prompts"]) {
    texts.push_back(
        {.name = prompt["text"], .prompt = prompt["prompt"], .tokens = {}, .leads = {}});
  }
  const auto vocab = static_cast<size_t>(config_.vocab_size);
  StepResult result;
  for (int32_t i = 0; i < kTokens; ++i) {
    paged.NextStep();
    for (size_t s = 0; s < texts.size(); ++s) {
      const auto slot = static_cast<int32_t>(s);
      if (i == 0) {
        paged.Assign(slot, greedy);
        paged.Append(slot, texts[s].prompt, true);
      } else {
        paged.Append(slot, std::span(texts[s].tokens).last(1), true, i);
      }
    }
    EXPECT_THAT(backend->Launch(paged.batch()), IsOk());
    EXPECT_THAT(backend->Wait(&result), IsOk());
    std::vector<float> logits = backend->ReadLogits().value();
    for (size_t s = 0; s < texts.size(); ++s) {
      const auto row = std::span(logits).subspan(s * vocab, vocab);
      texts[s].tokens.push_back(result.token_ids[s]);
      std::ranges::nth_element(row, row.begin() + 1, std::greater<>());
      texts[s].leads.push_back(double{row[0]} - row[1]);
    }
  }
  return texts;
}

// In bf16 rounding alone moves leads by more than the design's 0.05: references.json has by how
// much.
TEST_F(GptqSmolLm2Test, BothWaysChooseTheSame) {
  constexpr double kDeviations = 4;
  const double bf16_moves = references_["bf16_lead_moves"]["rms"];
  for (const std::string type : {"fp16", "bf16"}) {
    const double sure_lead = type == "fp16" ? 0.05 : kDeviations * bf16_moves;
    const auto reference = Gpu(type, /*fused=*/false, 20, 512, 512);
    const std::vector<test::ReferenceText> texts = Continue(reference.get());
    for (const int32_t together : {1, 20}) {
      const auto fused = Gpu(type, /*fused=*/true, together, 512, 512);
      const auto agreement = test::ForceReference(fused.get(), texts, {.together = together});
      ASSERT_THAT(agreement, IsOk());
      EXPECT_EQ(agreement->tokens, 1280);
      EXPECT_EQ(agreement->Beyond(sure_lead), "");
      std::cout << "  " << type << ", " << together << " together: the same in "
                << agreement->tokens - std::ssize(agreement->disagreements) << " of "
                << agreement->tokens << " tokens\n";
    }
  }
}

}  // namespace
}  // namespace ferrite

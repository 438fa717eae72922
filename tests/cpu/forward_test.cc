#include "cpu/forward.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "engine/slot_table.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/paged_batch.h"

namespace ferrite {
namespace {

constexpr int32_t kNumBlocks = 64;

// Blocks in an order in which no two neighbours of a sequence are neighbours in the pool.
std::vector<int32_t> ScatteredBlocks() {
  std::vector<int32_t> blocks;
  for (int32_t i = 0; i < kNumBlocks; ++i) {
    blocks.push_back(i * 27 % kNumBlocks);
  }
  return blocks;
}

// A forward pass with the block tables it needs, as the backend has them.
class Model {
 public:
  Model(const TinyModel& tiny, ComputeType type, int32_t block_size, int32_t threads)
      : config_(tiny.config),
        pool_(threads),
        slots_(Info(tiny, block_size)),
        paged_(block_size, ScatteredBlocks()) {
    const BackendInfo info = Info(tiny, block_size);
    auto forward = ForwardPass::Create(tiny.config, *tiny.checkpoint,
                                       {.compute_type = type,
                                        .num_blocks = info.num_blocks,
                                        .block_size = info.block_size,
                                        .max_sequences = info.max_sequences,
                                        .max_step_tokens = info.max_step_tokens,
                                        .max_sequence_length = info.max_sequence_length},
                                       &pool_);
    EXPECT_TRUE(forward.ok()) << forward.status();
    forward_ = std::move(*forward);
    paged_.NextStep();
  }

  PagedBatch& paged() { return paged_; }
  ForwardPass& forward() { return *forward_; }

  // Runs the batch built so far; a row of logits for each sample.
  std::vector<std::vector<float>> Run() {
    const Batch& batch = paged_.batch();
    EXPECT_EQ(slots_.Apply(batch), absl::OkStatus());
    EXPECT_EQ(slots_.Check(batch, 0), absl::OkStatus());
    const auto logits =
        forward_->Run(batch, batch.token_ids, slots_.block_tables(), slots_.blocks_per_slot());
    EXPECT_TRUE(logits.ok()) << logits.status();
    std::vector<std::vector<float>> rows;
    for (int32_t r = 0; r < batch.num_samples(); ++r) {
      const auto row = logits->subspan(int64_t{r} * config_.vocab_size, config_.vocab_size);
      rows.emplace_back(row.begin(), row.end());
    }
    paged_.NextStep();
    return rows;
  }

  // The logits at every position of `tokens`, fed one by one to `slot`.
  std::vector<std::vector<float>> RunOneByOne(int32_t slot, std::span<const TokenId> tokens) {
    std::vector<std::vector<float>> rows;
    paged_.Assign(slot, params_);
    for (size_t i = 0; i < tokens.size(); ++i) {
      paged_.Append(slot, tokens.subspan(i, 1), true);
      rows.push_back(Run()[0]);
    }
    return rows;
  }

  const SamplingParams& params() const { return params_; }

 private:
  static BackendInfo Info(const TinyModel& tiny, int32_t block_size) {
    BackendInfo info;
    info.num_blocks = kNumBlocks;
    info.block_size = block_size;
    info.max_sequences = 4;
    info.max_step_tokens = 100;
    info.max_sequence_length = tiny.config.max_position_embeddings;
    info.vocab_size = tiny.config.vocab_size;
    return info;
  }

  ModelConfig config_;
  SamplingParams params_;
  ThreadPool pool_;
  SlotTable slots_;
  PagedBatch paged_;
  std::unique_ptr<ForwardPass> forward_;
};

// Row `position` of a prompt's reference.
std::span<const double> Expected(const TinyModel& tiny, const TinyModel::Prompt& prompt,
                                 size_t position) {
  const auto vocab = static_cast<size_t>(tiny.config.vocab_size);
  return std::span(prompt.logits).subspan(position * vocab, vocab);
}

struct Case {
  const char* model;
  ComputeType type;
  double tolerance;
};

class ForwardTest : public testing::TestWithParam<Case> {
 protected:
  ForwardTest() : tiny_(LoadTinyModel(GetParam().model)) {}

  void SetUp() override { ASSERT_EQ(tiny_.prompts.size(), 3u); }

  TinyModel tiny_;
};

INSTANTIATE_TEST_SUITE_P(Models, ForwardTest,
                         testing::Values(Case{"tiny_untied_f32", ComputeType::kFp32, 1e-5},
                                         Case{"tiny_tied_bf16", ComputeType::kFp32, 1e-5},
                                         Case{"tiny_tied_bf16", ComputeType::kBf16, 2e-2}),
                         [](const auto& param_info) {
                           return std::string(param_info.param.model) + "_in_" +
                                  ComputeTypeName(param_info.param.type);
                         });

TEST_P(ForwardTest, EveryPositionMatchesTheReference) {
  for (const int32_t block_size : {3, 16}) {
    Model model(tiny_, GetParam().type, block_size, 2);
    double worst = 0;
    for (int32_t p = 0; p < 3; ++p) {
      const TinyModel::Prompt& prompt = tiny_.prompts[p];
      const auto rows = model.RunOneByOne(p, prompt.tokens);
      for (size_t i = 0; i < rows.size(); ++i) {
        const double error = RelativeError(rows[i], Expected(tiny_, prompt, i));
        EXPECT_LE(error, GetParam().tolerance) << "prompt " << p << " position " << i;
        worst = std::max(worst, error);
        if (GetParam().type == ComputeType::kBf16 && CpuMultipliesBf16()) {
          // Nearly all of that error is rounding that bf16 products are bound to do.
          const auto vocab = static_cast<size_t>(tiny_.config.vocab_size);
          EXPECT_LE(RelativeError(rows[i], std::span(prompt.logits_bf16).subspan(i * vocab, vocab)),
                    4e-3)
              << "prompt " << p << " position " << i;
        }
      }
    }
    RecordProperty("worst_relative_error", std::to_string(worst));
  }
}

TEST_P(ForwardTest, EverySplitOfAPromptMatchesTheReference) {
  const TinyModel::Prompt& prompt = tiny_.prompts[2];
  const std::span<const TokenId> tokens = prompt.tokens;
  const auto expected = Expected(tiny_, prompt, tokens.size() - 1);
  for (size_t first = 1; first <= tokens.size(); ++first) {
    // A pool per split, so that nothing of the last one can help.
    Model model(tiny_, GetParam().type, 4, 1);
    model.paged().Assign(1, model.params());
    model.paged().Append(1, tokens.first(first), first == tokens.size());
    auto rows = model.Run();
    if (first < tokens.size()) {
      EXPECT_TRUE(rows.empty());
      model.paged().Append(1, tokens.subspan(first), true);
      rows = model.Run();
    }
    ASSERT_EQ(rows.size(), 1u);
    EXPECT_LE(RelativeError(rows[0], expected), GetParam().tolerance) << "split at " << first;
  }
}

TEST_P(ForwardTest, ChunksAndDecodesShareAStep) {
  Model model(tiny_, GetParam().type, 4, 3);
  const TinyModel::Prompt& decoding = tiny_.prompts[1];
  const TinyModel::Prompt& prefilling = tiny_.prompts[2];
  const std::span<const TokenId> decoded = decoding.tokens;
  const std::span<const TokenId> chunks = prefilling.tokens;
  model.paged().Assign(3, model.params());
  model.paged().Append(3, decoded.first(10), false);
  EXPECT_TRUE(model.Run().empty());
  model.paged().Assign(0, model.params());
  for (size_t i = 0; i < 9; ++i) {
    // Four tokens a step of one prompt, and one token of the other, in changing order.
    const size_t begin = i * 4;
    const size_t size = std::min<size_t>(i == 8 ? 5 : 4, chunks.size() - begin);
    if (i % 2 == 0) {
      model.paged().Append(0, chunks.subspan(begin, size), true);
      model.paged().Append(3, decoded.subspan(10 + i, 1), true);
    } else {
      model.paged().Append(3, decoded.subspan(10 + i, 1), true);
      model.paged().Append(0, chunks.subspan(begin, size), true);
    }
    const auto rows = model.Run();
    ASSERT_EQ(rows.size(), 2u);
    EXPECT_LE(RelativeError(rows[i % 2], Expected(tiny_, prefilling, begin + size - 1)),
              GetParam().tolerance);
    EXPECT_LE(RelativeError(rows[1 - i % 2], Expected(tiny_, decoding, 10 + i)),
              GetParam().tolerance);
  }
}

TEST_P(ForwardTest, OnlyTheRowsAskedForAreReturned) {
  Model model(tiny_, GetParam().type, 8, 2);
  for (int32_t p = 0; p < 3; ++p) {
    model.paged().Assign(p, model.params());
    model.paged().Append(p, tiny_.prompts[p].tokens, p != 1);
  }
  const auto rows = model.Run();
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_LE(RelativeError(rows[0], Expected(tiny_, tiny_.prompts[0], 0)), GetParam().tolerance);
  EXPECT_LE(RelativeError(rows[1], Expected(tiny_, tiny_.prompts[2], 36)), GetParam().tolerance);
}

class BatchInvarianceTest : public testing::TestWithParam<ComputeType> {};

INSTANTIATE_TEST_SUITE_P(Types, BatchInvarianceTest,
                         testing::Values(ComputeType::kFp32, ComputeType::kBf16));

// Bit for bit: neither neighbours, nor chunks, nor the number of threads change a sequence's
// logits. Promised wherever our own matrix products serve.
TEST_P(BatchInvarianceTest, LogitsAreTheSameBitsAloneAndInCompany) {
  if (GetParam() == ComputeType::kBf16 && CpuMultipliesBf16()) {
    GTEST_SKIP() << "not promised by oneDNN";
  }
  const TinyModel tiny = LoadTinyModel("tiny_untied_f32");
  const std::span<const TokenId> tokens = tiny.prompts[2].tokens;
  Model alone(tiny, GetParam(), 4, 1);
  const auto expected = alone.RunOneByOne(0, tokens);
  for (const size_t chunk : {1u, 2u, 5u, 36u}) {
    Model company(tiny, GetParam(), 4, 3);
    company.paged().Assign(0, company.params());
    company.paged().Assign(1, company.params());
    company.paged().Assign(2, company.params());
    size_t step = 0;
    for (size_t begin = 0; begin < tokens.size(); begin += chunk, ++step) {
      const size_t size = std::min(chunk, tokens.size() - begin);
      if (step < 19) {
        company.paged().Append(1, std::span(tiny.prompts[1].tokens).subspan(step, 1), true);
      }
      company.paged().Append(0, tokens.subspan(begin, size), true);
      if (step == 0) {
        company.paged().Append(2, tiny.prompts[1].tokens, true);
      }
      const auto rows = company.Run();
      const std::vector<float>& row = rows[step < 19 ? 1 : 0];
      ASSERT_EQ(
          std::memcmp(row.data(), expected[begin + size - 1].data(), row.size() * sizeof(float)), 0)
          << "chunk " << chunk << " position " << begin + size - 1;
    }
  }
}

}  // namespace
}  // namespace ferrite

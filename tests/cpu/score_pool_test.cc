// What the CPU backend gives beside sampled tokens: the log-probabilities of tokens that are known,
// and pooled vectors.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "cpu/cpu_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/embed_references.h"
#include "tests/testing/paged_batch.h"

namespace ferrite {
namespace {

using test::EmbedReference;

constexpr int32_t kMaxSequences = 4;
constexpr int32_t kBlockSize = 4;
constexpr int32_t kNumBlocks = 160;
const SamplingParams kGreedy = {.temperature = 0, .num_logprobs = 3};

std::vector<int32_t> Blocks() {
  std::vector<int32_t> blocks(kNumBlocks);
  for (int32_t i = 0; i < kNumBlocks; ++i) {
    blocks[i] = i * 27 % kNumBlocks;  // no two neighbours are neighbours in the pool
  }
  return blocks;
}

std::unique_ptr<CpuBackend> Create(const ModelConfig& config, const Checkpoint& checkpoint,
                                   const char* compute_type = "fp32", int32_t threads = 2) {
  auto backend = CpuBackend::Create(config, checkpoint,
                                    {.compute_type = compute_type,
                                     .num_threads = threads,
                                     .num_blocks = kNumBlocks,
                                     .block_size = kBlockSize,
                                     .max_sequences = kMaxSequences,
                                     .max_step_tokens = 256});
  EXPECT_TRUE(backend.ok()) << backend.status();
  return *std::move(backend);
}

StepResult RunStep(CpuBackend* backend, PagedBatch* paged) {
  StepResult result;
  EXPECT_EQ(backend->Launch(paged->batch()), absl::OkStatus());
  EXPECT_EQ(backend->Wait(&result), absl::OkStatus());
  paged->NextStep();
  return result;
}

class ScoreTest : public testing::Test {
 protected:
  ScoreTest() { paged_.NextStep(); }

  // Appends tokens [begin, begin + count) of a prompt and scores each whose successor is known.
  void Append(int32_t slot, const std::vector<TokenId>& tokens, size_t begin, size_t count) {
    const int32_t first = paged_.batch().num_tokens();
    const bool ends = begin + count == tokens.size();
    paged_.Append(slot, std::span(tokens).subspan(begin, count), ends);
    for (size_t i = begin; i < begin + count && i + 1 < tokens.size(); ++i) {
      paged_.batch().scored.push_back({.token = static_cast<int32_t>(first + i - begin),
                                       .next = tokens[i + 1],
                                       .num_top = NumTop(i)});
    }
  }
  static int32_t NumTop(size_t position) { return static_cast<int32_t>(position * 7 % 21); }

  // Of the float64 logits at `position`.
  std::vector<double> LogSoftmax(const TinyModel::Prompt& prompt, size_t position) const {
    const auto begin = prompt.logits.begin() + position * tiny_.config.vocab_size;
    std::vector<double> row(begin, begin + tiny_.config.vocab_size);
    const double most = *std::max_element(row.begin(), row.end());
    double total = 0;
    for (const double logit : row) {
      total += std::exp(logit - most);
    }
    for (double& logit : row) {
      logit -= most + std::log(total);
    }
    return row;
  }

  void ExpectReference(const LogprobView& score, const TinyModel::Prompt& prompt,
                       size_t position) const {
    std::vector<double> expected = LogSoftmax(prompt, position);
    EXPECT_NEAR(score.own, expected[prompt.tokens[position + 1]], 1e-4) << position;
    ASSERT_EQ(score.top.size(), static_cast<size_t>(NumTop(position)));
    for (const TokenLogprob& entry : score.top) {
      const auto likeliest = std::max_element(expected.begin(), expected.end());
      EXPECT_EQ(entry.id, likeliest - expected.begin()) << position;
      EXPECT_NEAR(entry.logprob, *likeliest, 1e-4) << position;
      *likeliest = -std::numeric_limits<double>::infinity();
    }
  }

  const TinyModel tiny_ = LoadTinyModel("tiny_untied_f32");
  const std::unique_ptr<CpuBackend> backend_ = Create(tiny_.config, *tiny_.checkpoint);
  PagedBatch paged_{kBlockSize, Blocks()};
};

TEST_F(ScoreTest, TheBackendSaysThatItScoresAndPools) {
  EXPECT_TRUE(backend_->info().scores_tokens);
  EXPECT_TRUE(backend_->info().pools);
  EXPECT_EQ(backend_->info().hidden_size, tiny_.config.hidden_size);
}

// More tokens than the buffer of logits has rows for, of two sequences beside a third that samples.
TEST_F(ScoreTest, WholePromptsMatchTheReference) {
  paged_.Assign(1, kGreedy);
  paged_.Append(1, tiny_.prompts[1].tokens, true);
  const StepResult alone = RunStep(backend_.get(), &paged_);
  EXPECT_TRUE(alone.scores.empty());
  EXPECT_TRUE(alone.pooled.empty());

  for (const int32_t slot : {0, 1, 2}) {
    paged_.Assign(slot, kGreedy);
  }
  const TinyModel::Prompt& first = tiny_.prompts[2];
  const TinyModel::Prompt& second = tiny_.prompts[1];
  Append(2, first.tokens, 0, first.tokens.size());
  paged_.Append(1, second.tokens, true);
  Append(0, second.tokens, 0, second.tokens.size());
  const StepResult result = RunStep(backend_.get(), &paged_);
  const size_t scored = first.tokens.size() - 1;
  ASSERT_EQ(result.scores.size(), static_cast<int32_t>(scored + second.tokens.size() - 1));
  ASSERT_GT(result.scores.size(), 3 * kMaxSequences);
  for (size_t i = 0; i < scored; ++i) {
    ExpectReference(result.scores[i], first, i);
  }
  for (size_t i = 0; i + 1 < second.tokens.size(); ++i) {
    ExpectReference(result.scores[scored + i], second, i);
  }
  // What was sampled beside them is what it is alone.
  EXPECT_EQ(result.token_ids[1], alone.token_ids[0]);
  EXPECT_EQ(result.logprobs[1].own, alone.logprobs[0].own);
  for (int32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(result.logprobs[1].top[i].id, alone.logprobs[0].top[i].id);
    EXPECT_EQ(result.logprobs[1].top[i].logprob, alone.logprobs[0].top[i].logprob);
  }
}

TEST_F(ScoreTest, ChunksScoreWhatTheWholeDoes) {
  const TinyModel::Prompt& prompt = tiny_.prompts[2];
  paged_.Assign(0, kGreedy);
  Append(0, prompt.tokens, 0, prompt.tokens.size());
  const LogprobList whole = RunStep(backend_.get(), &paged_).scores;
  for (const size_t chunk : {1u, 5u, 36u}) {
    LogprobList chunked;
    paged_.Assign(3, kGreedy);
    for (size_t begin = 0; begin < prompt.tokens.size(); begin += chunk) {
      Append(3, prompt.tokens, begin, std::min(chunk, prompt.tokens.size() - begin));
      const LogprobList scores = RunStep(backend_.get(), &paged_).scores;
      for (int32_t i = 0; i < scores.size(); ++i) {
        chunked.Append(scores[i].own, scores[i].top);
      }
    }
    EXPECT_EQ(chunked.own, whole.own) << chunk;
    EXPECT_EQ(chunked.top_offsets, whole.top_offsets) << chunk;
    ASSERT_EQ(chunked.top.size(), whole.top.size()) << chunk;
    for (size_t i = 0; i < whole.top.size(); ++i) {
      EXPECT_EQ(chunked.top[i].id, whole.top[i].id) << chunk;
      EXPECT_EQ(chunked.top[i].logprob, whole.top[i].logprob) << chunk;
    }
  }
}

class PoolTest : public testing::Test {
 protected:
  PoolTest() { paged_.NextStep(); }

  void Assign(int32_t slot, Pooling pooling) {
    paged_.Assign(slot, kGreedy);
    paged_.batch().slot_assignments.back().pooling = pooling;
  }
  void Append(int32_t slot, const std::vector<TokenId>& tokens, size_t begin, size_t count) {
    if (begin + count == tokens.size()) {
      paged_.batch().pooled_seqs.push_back(paged_.batch().num_sequences());
    }
    paged_.Append(slot, std::span(tokens).subspan(begin, count), false);
  }
  // The pooled vector of one sequence in chunks of `chunk` tokens.
  std::vector<float> PoolAlone(CpuBackend* backend, int32_t slot,
                               const std::vector<TokenId>& tokens, Pooling pooling, size_t chunk) {
    paged_ = PagedBatch(kBlockSize, Blocks());
    paged_.NextStep();
    Assign(slot, pooling);
    StepResult result;
    for (size_t begin = 0; begin < tokens.size(); begin += chunk) {
      EXPECT_TRUE(result.pooled.empty());
      Append(slot, tokens, begin, std::min(chunk, tokens.size() - begin));
      result = RunStep(backend, &paged_);
    }
    return result.pooled;
  }

  const ModelConfig config_ = LoadModelConfig(test::kEmbedModel).value();
  const std::unique_ptr<Checkpoint> checkpoint_ = Checkpoint::Open(test::kEmbedModel).value();
  const std::unique_ptr<CpuBackend> backend_ = Create(config_, *checkpoint_);
  const std::vector<EmbedReference> references_ = test::LoadEmbedReferences();
  PagedBatch paged_{kBlockSize, Blocks()};
};

TEST_F(PoolTest, VectorsAreThoseOfTransformersHoweverTheyAreCut) {
  ASSERT_GT(references_.size(), 8u);
  for (const EmbedReference& reference : references_) {
    const std::vector<TokenId>& tokens = reference.token_ids;
    for (const Pooling pooling : {Pooling::kLast, Pooling::kMean}) {
      const auto& expected = pooling == Pooling::kLast ? reference.last : reference.mean;
      const std::vector<float> whole = PoolAlone(backend_.get(), 1, tokens, pooling, tokens.size());
      ASSERT_EQ(whole.size(), expected.size());
      EXPECT_LE(RelativeError(whole, expected), 1e-5) << tokens.size() << " tokens";
      for (const size_t chunk : {7u, 64u}) {
        EXPECT_EQ(PoolAlone(backend_.get(), 2, tokens, pooling, chunk), whole)
            << tokens.size() << " tokens in chunks of " << chunk;
      }
    }
  }
}

// Two that pool, ending in different steps, beside one that generates and one that only scores; in
// changing order, over slots that were left in the middle of a sum.
TEST_F(PoolTest, CompanyChangesNothing) {
  const std::vector<TokenId>& mean = references_[12].token_ids;
  const std::vector<TokenId>& last = references_[9].token_ids;
  ASSERT_NE(mean.size(), last.size());
  const auto mean_alone = PoolAlone(backend_.get(), 0, mean, Pooling::kMean, mean.size());
  const auto last_alone = PoolAlone(backend_.get(), 0, last, Pooling::kLast, last.size());
  paged_ = PagedBatch(kBlockSize, Blocks());
  paged_.NextStep();
  for (const int32_t slot : {0, 2}) {
    Assign(slot, Pooling::kMean);
    Append(slot, mean, 0, 5);
  }
  EXPECT_TRUE(RunStep(backend_.get(), &paged_).pooled.empty());

  Assign(0, Pooling::kMean);
  Assign(1, Pooling::kNone);
  Assign(2, Pooling::kLast);
  Assign(3, Pooling::kNone);
  std::vector<float> mean_pooled;
  std::vector<float> last_pooled;
  for (size_t begin = 0; begin < std::max(mean.size(), last.size()); begin += 4) {
    const auto add_mean = [&] {
      if (begin < mean.size()) Append(0, mean, begin, std::min<size_t>(4, mean.size() - begin));
    };
    if (begin % 8 == 0) add_mean();
    paged_.Append(1, std::vector<TokenId>{5}, true);
    if (begin < last.size()) Append(2, last, begin, std::min<size_t>(4, last.size() - begin));
    if (begin % 8 != 0) add_mean();
    paged_.Append(3, std::vector<TokenId>{9}, false);
    paged_.batch().scored.push_back({.token = paged_.batch().num_tokens() - 1, .next = 9});
    const StepResult result = RunStep(backend_.get(), &paged_);
    EXPECT_EQ(result.token_ids.size(), 1u);
    EXPECT_EQ(result.scores.size(), 1);
    if (begin < mean.size() && begin + 4 >= mean.size()) mean_pooled = result.pooled;
    if (begin < last.size() && begin + 4 >= last.size()) last_pooled = result.pooled;
  }
  EXPECT_EQ(mean_pooled, mean_alone);
  EXPECT_EQ(last_pooled, last_alone);
}

TEST_F(PoolTest, SeveralEndInOneStepInTheirOrder) {
  const EmbedReference& a = references_[4];
  const EmbedReference& b = references_[7];
  paged_.NextStep();
  Assign(0, Pooling::kMean);
  Assign(3, Pooling::kLast);
  Append(3, a.token_ids, 0, a.token_ids.size());
  Append(0, b.token_ids, 0, b.token_ids.size());
  const std::vector<float> pooled = RunStep(backend_.get(), &paged_).pooled;
  const size_t hidden = config_.hidden_size;
  ASSERT_EQ(pooled.size(), 2 * hidden);
  EXPECT_LE(RelativeError(std::span(pooled).first(hidden), a.last), 1e-5);
  EXPECT_LE(RelativeError(std::span(pooled).subspan(hidden), b.mean), 1e-5);
}

TEST_F(PoolTest, VectorsAreFp32WhereProductsAreNot) {
  const auto backend = Create(config_, *checkpoint_, "bf16");
  for (const Pooling pooling : {Pooling::kLast, Pooling::kMean}) {
    const EmbedReference& reference = references_[6];
    const auto pooled = PoolAlone(backend.get(), 0, reference.token_ids, pooling, 16);
    EXPECT_LE(RelativeError(pooled, pooling == Pooling::kLast ? reference.last : reference.mean),
              3e-2);
    EXPECT_TRUE(std::any_of(pooled.begin(), pooled.end(), [](float value) {
      return (std::bit_cast<uint32_t>(value) & 0xFFFF) != 0;
    }));
  }
}

}  // namespace
}  // namespace ferrite

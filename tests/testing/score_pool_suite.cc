// Scored tokens and pooled vectors of a step, on any backend (outputs_backend.h), against logits
// that transformers knows: a pooled vector times the head is the logits of its token, or the mean
// of the logits of all of them. Vectors of a model for embeddings are against transformers' own.
#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/model/tensor_view.h"
#include "gtest/gtest.h"
#include "tests/testing/embed_references.h"
#include "tests/testing/outputs_backend.h"
#include "tests/testing/paged_batch.h"
#include "tests/testing/reference_prompt.h"

namespace ferrite::test {
namespace {

using Sizes = OutputsSizes;

class ScorePoolTest : public testing::TestWithParam<OutputsVariant> {
 protected:
  void SetUp() override {
    if (!OutputsDeviceIsThere()) {
      GTEST_SKIP() << "no GPU is visible";
    }
    Create(prompt_.config, *prompt_.checkpoint);
  }

  void Create(const ModelConfig& config, const Checkpoint& checkpoint) {
    backend_ = CreateOutputsBackend(GetParam(), config, checkpoint);
    paged_ = PagedBatch(Sizes::kBlockSize, SpreadBlocks(Sizes::kNumBlocks));
    paged_.NextStep();
  }

  void Assign(int32_t slot, const SamplingParams& params, Pooling pooling = Pooling::kNone) {
    paged_.Assign(slot, params);
    paged_.batch().slot_assignments.back().pooling = pooling;
    fed_[slot] = 0;
  }

  // The next `size` tokens of `tokens` for the slot.
  void Feed(int32_t slot, std::span<const TokenId> tokens, int32_t size, bool sample) {
    paged_.Append(slot, tokens.subspan(fed_[slot], size), sample, fed_[slot]);
    fed_[slot] += size;
  }

  // The same of the prompt, all but the last of which are scored, as many likeliest with each as
  // its position says; so is the last where nothing is sampled.
  void Score(int32_t slot, int32_t size, bool sample) {
    const int32_t first = fed_[slot];
    const int32_t begin = paged_.batch().num_tokens();
    Feed(slot, prompt_.tokens, size, sample);
    for (int32_t i = 0; i < size - (sample ? 1 : 0); ++i) {
      if (first + i + 1 < prompt_.size()) {
        paged_.batch().scored.push_back({.token = begin + i,
                                         .next = prompt_.tokens[first + i + 1],
                                         .num_top = NumTop(first + i)});
        positions_.push_back(first + i);
      }
    }
  }

  static int32_t NumTop(int32_t position) {
    constexpr int32_t kNumTop[] = {0, 20, 1, 5};
    return kNumTop[position % 4];
  }

  // The next `size` tokens for a slot that pools, whose last ones they may be.
  void Feed(int32_t slot, std::span<const TokenId> tokens, int32_t size) {
    Feed(slot, tokens, size, false);
    if (fed_[slot] == static_cast<int32_t>(tokens.size())) {
      paged_.batch().pooled_seqs.push_back(paged_.batch().num_sequences() - 1);
    }
  }

  void Run() {
    ASSERT_EQ(backend_->Launch(paged_.batch()), absl::OkStatus());
    const size_t num_pooled = paged_.batch().pooled_seqs.size();
    paged_.NextStep();
    ASSERT_EQ(backend_->Wait(&result_), absl::OkStatus());
    ASSERT_EQ(result_.pooled.size(), num_pooled * backend_->info().hidden_size);
    ASSERT_EQ(result_.scores.size(), static_cast<int32_t>(positions_.size()));
    const std::vector<int32_t> positions = std::exchange(positions_, {});
    for (size_t i = 0; i < positions.size(); ++i) {
      SCOPED_TRACE(testing::Message() << "scored " << i << " at " << positions[i]);
      CheckScore(result_.scores[static_cast<int32_t>(i)], positions[i]);
    }
  }

  void CheckScore(const LogprobView& score, int32_t position) {
    const std::vector<double> expected = prompt_.LogSoftmax(position);
    EXPECT_NEAR(score.own, expected[prompt_.tokens[position + 1]], GetParam().tolerance);
    ASSERT_EQ(score.top.size(), static_cast<size_t>(NumTop(position)));
    std::vector<double> sorted = expected;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    std::set<TokenId> ids;
    for (size_t i = 0; i < score.top.size(); ++i) {
      EXPECT_NEAR(score.top[i].logprob, sorted[i], GetParam().tolerance) << i;
      EXPECT_NEAR(score.top[i].logprob, expected[score.top[i].id], GetParam().tolerance) << i;
      EXPECT_TRUE(ids.insert(score.top[i].id).second) << score.top[i].id << " twice";
    }
    ++num_scores_;
  }

  std::span<const float> Pooled(int32_t row) const {
    const int32_t hidden = backend_->info().hidden_size;
    return std::span(result_.pooled).subspan(int64_t{row} * hidden, hidden);
  }

  // The head's product with a pooled vector, in float64, against the mean of the reference's logits
  // at positions [first, end).
  void CheckPooled(std::span<const float> pooled, int32_t first, int32_t end) {
    const TensorView& head = *prompt_.checkpoint->Find("lm_head.weight");
    std::vector<float> row(pooled.size());
    for (int32_t id = 0; id < prompt_.vocab_size(); ++id) {
      ConvertToFloat(head, id * static_cast<int64_t>(row.size()), row);
      double actual = 0;
      for (size_t i = 0; i < row.size(); ++i) {
        actual += double{row[i]} * pooled[i];
      }
      double expected = 0;
      for (int32_t position = first; position < end; ++position) {
        expected += prompt_.Logits(position)[id];
      }
      ASSERT_NEAR(actual, expected / (end - first), GetParam().tolerance) << "token " << id;
    }
    ++num_pooled_;
  }

  ReferencePrompt prompt_ = LoadReferencePrompt();
  std::unique_ptr<Backend> backend_;
  PagedBatch paged_{Sizes::kBlockSize, {}};
  int32_t fed_[Sizes::kMaxSequences] = {};
  std::vector<int32_t> positions_;  // of what the step scores
  StepResult result_;
  int num_scores_ = 0;
  int num_pooled_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Backends, ScorePoolTest, testing::ValuesIn(OutputsVariants()),
                         [](const auto& variant) { return variant.param.name; });

// At once there are more scored tokens than slots.
TEST_P(ScorePoolTest, PromptsAreScoredWholeAndInPieces) {
  ASSERT_TRUE(backend_->info().scores_tokens);
  const SamplingParams greedy = {.temperature = 0};
  Assign(2, greedy);
  Score(2, prompt_.size(), true);
  Run();
  EXPECT_EQ(num_scores_, prompt_.size() - 1);
  EXPECT_TRUE(result_.logprobs.empty());
  Assign(2, greedy);
  for (const int32_t piece : {5, 1, 6, 1}) {
    Score(2, piece, false);
    Run();
  }
  Score(2, prompt_.size() - 13, true);
  Run();
  EXPECT_EQ(num_scores_, 2 * (prompt_.size() - 1));
}

// Scores of two prompts beside samples with log-probabilities of their own.
TEST_P(ScorePoolTest, ScoresAndSamplesKeepApart) {
  ASSERT_TRUE(backend_->info().scores_tokens);
  const SamplingParams asks = {.temperature = 0, .num_logprobs = 4};
  const SamplingParams does_not = {.temperature = 0};
  Assign(1, asks);
  Assign(4, does_not);
  Assign(0, asks);
  Feed(4, prompt_.tokens, 3, true);
  Score(1, 12, true);
  Score(0, 9, false);
  const int32_t sampled[] = {2, 11};
  Run();
  for (int32_t row = 0; row < 2; ++row) {
    const std::vector<double> expected = prompt_.LogSoftmax(sampled[row]);
    const TokenId token = result_.token_ids[row];
    EXPECT_GE(expected[token],
              *std::max_element(expected.begin(), expected.end()) - 2 * GetParam().tolerance);
    if (row == 1) {
      EXPECT_NEAR(result_.logprobs[row].own, expected[token], GetParam().tolerance);
      EXPECT_EQ(result_.logprobs[row].top.size(), 4u);
    }
  }
  EXPECT_EQ(num_scores_, 11 + 9);
  Feed(4, prompt_.tokens, 1, true);
  Run();
  EXPECT_EQ(result_.scores.size(), 0);
}

TEST_P(ScorePoolTest, VectorsTimesTheHeadAreLogits) {
  ASSERT_TRUE(backend_->info().pools);
  const SamplingParams greedy = {.temperature = 0};
  Assign(0, greedy, Pooling::kLast);
  Assign(1, greedy, Pooling::kMean);
  Assign(2, greedy);
  Assign(3, greedy, Pooling::kMean);
  const std::span<const TokenId> all = prompt_.tokens;
  Feed(2, all, 7, true);
  Feed(0, all, prompt_.size());
  Feed(3, all.first(1), 1);
  Feed(1, all, prompt_.size());
  std::swap(paged_.batch().pooled_seqs[0], paged_.batch().pooled_seqs[2]);  // in any order
  Run();
  CheckPooled(Pooled(2), prompt_.size() - 1, prompt_.size());
  CheckPooled(Pooled(1), 0, 1);
  CheckPooled(Pooled(0), 0, prompt_.size());
  EXPECT_EQ(result_.token_ids.size(), 1u);
  Feed(2, all, 1, true);
  Run();
  EXPECT_TRUE(result_.pooled.empty());
}

// Whole or in pieces, beside others that begin, go on and end in the same steps.
TEST_P(ScorePoolTest, PiecesPoolAsTheWhole) {
  ASSERT_TRUE(backend_->info().pools);
  const SamplingParams greedy = {.temperature = 0};
  const std::span<const TokenId> all = prompt_.tokens;
  for (const Pooling pooling : {Pooling::kMean, Pooling::kLast, Pooling::kMean}) {
    const auto first = [&](int32_t size) { return pooling == Pooling::kMean ? 0 : size - 1; };
    Assign(5, greedy, pooling);
    Feed(5, all, prompt_.size());
    Run();
    const std::vector<float> whole = result_.pooled;
    CheckPooled(whole, first(prompt_.size()), prompt_.size());
    Assign(5, greedy, pooling);
    Assign(2, greedy, pooling);
    Assign(0, greedy);
    const int32_t pieces[] = {4, 1, 9, 5};
    for (int32_t i = 0; i < 4; ++i) {
      if (i == 2) {  // another one begins where one has just ended
        Assign(2, greedy, pooling);
      }
      Feed(0, all, 2, true);
      Feed(5, all, pieces[i]);
      Feed(2, all.first(8 + i / 2), i % 2 == 0 ? 3 : 5 + i / 2);
      Run();
    }
    ASSERT_EQ(result_.pooled.size(), 2 * whole.size());
    CheckPooled(Pooled(0), first(prompt_.size()), prompt_.size());
    CheckPooled(Pooled(1), first(9), 9);
    double difference = 0;
    double norm = 0;
    for (size_t i = 0; i < whole.size(); ++i) {
      difference += std::pow(double{whole[i]} - result_.pooled[i], 2);
      norm += std::pow(double{whole[i]}, 2);
    }
    EXPECT_LE(std::sqrt(difference / norm), GetParam().tolerance);
  }
  EXPECT_EQ(num_pooled_, 9);
}

// In pieces, many together.
TEST_P(ScorePoolTest, EmbeddingsAreTransformers) {
  ASSERT_TRUE(backend_->info().pools);
  const std::vector<EmbedReference> references = LoadEmbedReferences();
  ASSERT_FALSE(references.empty());
  const ModelConfig config = LoadModelConfig(kEmbedModel).value();
  const auto checkpoint = Checkpoint::Open(kEmbedModel).value();
  const SamplingParams none;
  constexpr int32_t kPiece = 21;
  static_assert(kPiece * Sizes::kMaxSequences <= Sizes::kMaxStepTokens);
  for (const Pooling pooling : {Pooling::kLast, Pooling::kMean}) {
    Create(config, *checkpoint);
    for (size_t first = 0; first < references.size(); first += Sizes::kMaxSequences) {
      const auto group =
          std::span(references)
              .subspan(first, std::min<size_t>(Sizes::kMaxSequences, references.size() - first));
      for (size_t i = 0; i < group.size(); ++i) {
        Assign(static_cast<int32_t>(i), none, pooling);
      }
      size_t num_done = 0;
      std::vector<std::vector<float>> vectors(group.size());
      while (num_done < group.size()) {
        std::vector<size_t> ending;
        for (size_t i = 0; i < group.size(); ++i) {
          const auto slot = static_cast<int32_t>(i);
          const auto left = static_cast<int32_t>(group[i].token_ids.size()) - fed_[slot];
          if (left > 0) {
            Feed(slot, group[i].token_ids, std::min(left, kPiece));
          }
          if (left > 0 && left <= kPiece) {
            ending.push_back(i);
          }
        }
        Run();
        for (size_t row = 0; row < ending.size(); ++row) {
          const std::span<const float> pooled = Pooled(static_cast<int32_t>(row));
          vectors[ending[row]].assign(pooled.begin(), pooled.end());
        }
        num_done += ending.size();
      }
      for (size_t i = 0; i < group.size(); ++i) {
        const std::vector<double>& expected =
            pooling == Pooling::kLast ? group[i].last : group[i].mean;
        const std::vector<float>& actual = vectors[i];
        ASSERT_EQ(actual.size(), expected.size());
        double product = 0;
        double squares = 0;
        double expected_squares = 0;
        for (size_t j = 0; j < expected.size(); ++j) {
          product += actual[j] * expected[j];
          squares += double{actual[j]} * actual[j];
          expected_squares += expected[j] * expected[j];
        }
        EXPECT_GE(product / std::sqrt(squares * expected_squares), 0.9999) << group[i].text;
        EXPECT_NEAR(std::sqrt(squares / expected_squares), 1, GetParam().tolerance);
      }
    }
  }
}

}  // namespace
}  // namespace ferrite::test

// Steps that pool, score, and sample from plain and adjusted logits with log-probabilities, all at
// once and one upon the other, slots reassigned while their last step is under way. With one step
// outstanding each output is checked alone; with two, all must be the same to the bit.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/model/tensor_view.h"
#include "engine/sampler.h"
#include "engine/token_counts.h"
#include "gtest/gtest.h"
#include "tests/testing/outputs_backend.h"
#include "tests/testing/paged_batch.h"
#include "tests/testing/reference_prompt.h"

namespace ferrite::test {
namespace {

using Sizes = OutputsSizes;

// What the sequence of each slot is for.
constexpr int32_t kPools = 0;
constexpr int32_t kPoolsToo = 1;
constexpr int32_t kScoresAndAdjusts = 2;
constexpr int32_t kPlain = 3;
constexpr int32_t kDraws = 4;
constexpr int32_t kScores = 5;
static_assert(Sizes::kMaxSequences == 6);

// What a step was asked for.
struct Asked {
  std::vector<int32_t> row_slots;
  std::vector<int32_t> output_indices;
  std::vector<int32_t> scored;                      // positions
  std::vector<std::pair<int32_t, int32_t>> pooled;  // of which positions
};

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

bool SameBits(const LogprobList& a, const LogprobList& b) {
  return SameBits(a.own, b.own) && SameBits(a.top_offsets, b.top_offsets) && SameBits(a.top, b.top);
}

class MixedOutputsTest : public testing::TestWithParam<OutputsVariant> {
 protected:
  static constexpr int kRounds = 12;
  static constexpr int kSteps = 6;  // a round

  void SetUp() override {
    if (!OutputsDeviceIsThere()) {
      GTEST_SKIP() << "no GPU is visible";
    }
    backend_ = CreateOutputsBackend(GetParam(), prompt_.config, *prompt_.checkpoint);
    for (SamplingParams& params : params_) {
      params.temperature = 0;
    }
    params_[kScoresAndAdjusts].repetition_penalty = 1.4f;
    params_[kScoresAndAdjusts].presence_penalty = 0.5f;
    params_[kScoresAndAdjusts].num_logprobs = 4;
    params_[kDraws] = {.temperature = 0.9f,
                       .top_k = 30,
                       .seed = 5,
                       .min_new_tokens = 3,
                       .end_token_ids = {47, 11},
                       .frequency_penalty = 0.6f,
                       .logit_bias = {{7, 2.0f}, {79, -1.0f}},
                       .banned_token_ids = {5, 59},
                       .num_logprobs = 20};
  }

  // A sequence whose prompt are the fixture's first `length` tokens.
  void Assign(int32_t slot, int32_t length, Pooling pooling = Pooling::kNone) {
    paged_.Assign(slot, params_[slot]);
    SlotAssignment& assignment = paged_.batch().slot_assignments.back();
    assignment.tokens = std::span(prompt_.tokens).first(length);
    assignment.num_prompt_tokens = length;
    assignment.pooling = pooling;
    sequences_[slot] = {.length = length, .pooling = pooling};
    sequences_[slot].counts.Reset(assignment.tokens, length);
  }

  // The next `size` tokens of the slot's prompt.
  void FeedPrompt(int32_t slot, int32_t size) {
    Sequence& sequence = sequences_[slot];
    Batch& batch = paged_.batch();
    const int32_t first = sequence.fed;
    const int32_t end = sequence.fed += size;
    const int32_t begin = batch.num_tokens();
    const bool ends = end == sequence.length;
    const bool pools = sequence.pooling != Pooling::kNone;
    Feed(slot, std::span(prompt_.tokens).subspan(first, size), ends && !pools && slot != kScores);
    if (ends && pools) {
      batch.pooled_seqs.push_back(batch.num_sequences() - 1);
      asked_.pooled.push_back({sequence.pooling == Pooling::kMean ? 0 : end - 1, end});
    }
    const bool scores = slot == kScores || slot == kScoresAndAdjusts;
    for (int32_t position = first; scores && position < std::min(end, sequence.length - 1);
         ++position) {
      batch.scored.push_back({.token = begin + position - first,
                              .next = prompt_.tokens[position + 1],
                              .num_top = position % 3});
      asked_.scored.push_back(position);
    }
  }

  // The token that the step before sampled for the slot, which is on the device.
  void Decode(int32_t slot) {
    const std::vector<TokenId> unknown = {-1};
    Feed(slot, unknown, true, sequences_[slot].row);
  }

  void Feed(int32_t slot, std::span<const TokenId> tokens, bool sample, int32_t input_row = -1) {
    Sequence& sequence = sequences_[slot];
    paged_.Append(slot, tokens, sample, sequence.num_sampled, input_row);
    if (sample) {
      sequence.row = static_cast<int32_t>(asked_.row_slots.size());
      asked_.row_slots.push_back(slot);
      asked_.output_indices.push_back(sequence.num_sampled++);
    }
  }

  void Plan(int step) {
    switch (step) {
      case 0:
        Assign(kPools, 19, Pooling::kMean);
        Assign(kPoolsToo, 5, Pooling::kLast);
        Assign(kScoresAndAdjusts, 19);
        Assign(kPlain, 3);
        Assign(kDraws, 4);
        Assign(kScores, 19);
        FeedPrompt(kPlain, 3);
        FeedPrompt(kScores, 19);
        FeedPrompt(kPools, 7);
        FeedPrompt(kScoresAndAdjusts, 9);
        FeedPrompt(kPoolsToo, 5);
        FeedPrompt(kDraws, 4);
        break;
      case 1:
        Assign(kPoolsToo, 6, Pooling::kMean);
        Assign(kScores, 12);
        Decode(kDraws);
        Decode(kPlain);
        FeedPrompt(kPoolsToo, 6);
        FeedPrompt(kScoresAndAdjusts, 10);
        FeedPrompt(kPools, 12);
        FeedPrompt(kScores, 12);
        break;
      case 2:
      case 3:  // nothing but decodes, padded where they are graphs
        for (const int32_t slot : {kPlain, kDraws, kScoresAndAdjusts}) {
          Decode(slot);
        }
        break;
      case 4:
        Assign(kPools, 1, Pooling::kMean);
        Decode(kScoresAndAdjusts);
        Decode(kPlain);
        FeedPrompt(kPools, 1);
        Decode(kDraws);
        break;
      default:
        Decode(kDraws);
        Decode(kScoresAndAdjusts);
        Decode(kPlain);
    }
  }

  // The results of all steps, of which `depth` are outstanding at most.
  std::vector<StepResult> Play(int32_t depth) {
    paged_ = PagedBatch(Sizes::kBlockSize, SpreadBlocks(Sizes::kNumBlocks));
    std::vector<StepResult> results;
    const auto wait = [&] {
      StepResult& result = results.emplace_back();
      ASSERT_EQ(backend_->Wait(&result), absl::OkStatus());
      if (depth == 1) {
        Check(result);
      }
    };
    int32_t outstanding = 0;
    for (int step = 0; step < kRounds * kSteps && !HasFatalFailure(); ++step) {
      SCOPED_TRACE(testing::Message() << "step " << step % kSteps << " of round " << step / kSteps);
      asked_ = {};
      paged_.NextStep();
      Plan(step % kSteps);
      const absl::Status launched = backend_->Launch(paged_.batch());
      EXPECT_EQ(launched, absl::OkStatus());
      if (!launched.ok()) {
        return results;
      }
      if (++outstanding == depth) {
        wait();
        --outstanding;
      }
    }
    for (; outstanding > 0; --outstanding) {
      wait();
    }
    return results;
  }

  void Check(const StepResult& result) {
    const size_t rows = asked_.row_slots.size();
    ASSERT_EQ(result.token_ids.size(), rows);
    ASSERT_EQ(result.logprobs.own.size(), rows);  // some row always asks
    ASSERT_EQ(result.scores.own.size(), asked_.scored.size());
    const auto logits = OutputsLogits(*backend_);
    for (size_t r = 0; r < rows; ++r) {
      SCOPED_TRACE(testing::Message() << "slot " << asked_.row_slots[r]);
      if (logits.has_value()) {
        CheckRow(result, r, std::span(*logits).subspan(r * prompt_.vocab_size()));
      }
      sequences_[asked_.row_slots[r]].counts.AddOutput(result.token_ids[r]);
    }
    for (size_t i = 0; i < asked_.scored.size(); ++i) {
      CheckScore(result.scores[static_cast<int32_t>(i)], asked_.scored[i]);
    }
    const size_t hidden = backend_->info().hidden_size;
    ASSERT_EQ(result.pooled.size(), asked_.pooled.size() * hidden);
    for (size_t i = 0; i < asked_.pooled.size(); ++i) {
      CheckPooled(std::span(result.pooled).subspan(i * hidden, hidden), asked_.pooled[i]);
    }
  }

  // The engine's sampler on the step's own logits says which token it is, and how likely.
  void CheckRow(const StepResult& result, size_t r, std::span<const float> logits) {
    const int32_t slot = asked_.row_slots[r];
    const SamplingParams& params = params_[slot];
    std::vector<float> row(logits.begin(), logits.begin() + prompt_.vocab_size());
    const TokenId token = result.token_ids[r];
    EXPECT_EQ(token,
              sampler_.Sample(row, params, asked_.output_indices[r], sequences_[slot].counts));
    const auto likeliest = std::max_element(row.begin(), row.end());
    num_adjusted_ += slot == kScoresAndAdjusts && token != likeliest - row.begin() ? 1 : 0;
    const LogprobView logprobs = result.logprobs[static_cast<int32_t>(r)];
    if (params.num_logprobs < 0) {
      EXPECT_TRUE(std::isnan(logprobs.own));
      return;
    }
    std::vector<TokenLogprob> top(params.num_logprobs);
    EXPECT_NEAR(logprobs.own, Sampler::Logprobs(row, token, top), 1e-5);
    ASSERT_EQ(logprobs.top.size(), top.size());
    for (size_t i = 0; i < top.size(); ++i) {
      EXPECT_EQ(logprobs.top[i].id, top[i].id) << i;
      EXPECT_NEAR(logprobs.top[i].logprob, top[i].logprob, 1e-5) << i;
    }
  }

  void CheckScore(const LogprobView& score, int32_t position) {
    SCOPED_TRACE(testing::Message() << "scored at " << position);
    std::vector<double> expected = prompt_.LogSoftmax(position);
    EXPECT_NEAR(score.own, expected[prompt_.tokens[position + 1]], GetParam().tolerance);
    std::sort(expected.begin(), expected.end(), std::greater<>());
    ASSERT_EQ(score.top.size(), static_cast<size_t>(position % 3));
    for (size_t i = 0; i < score.top.size(); ++i) {
      EXPECT_NEAR(score.top[i].logprob, expected[i], GetParam().tolerance) << i;
    }
  }

  // Times the head it is the mean of the reference's logits.
  void CheckPooled(std::span<const float> pooled, std::pair<int32_t, int32_t> positions) {
    const TensorView& head = *prompt_.checkpoint->Find("lm_head.weight");
    std::vector<float> row(pooled.size());
    for (int32_t id = 0; id < prompt_.vocab_size(); ++id) {
      ConvertToFloat(head, id * static_cast<int64_t>(row.size()), row);
      double difference = 0;
      for (size_t i = 0; i < row.size(); ++i) {
        difference += double{row[i]} * pooled[i];
      }
      for (int32_t position = positions.first; position < positions.second; ++position) {
        difference -= double{prompt_.Logits(position)[id]} / (positions.second - positions.first);
      }
      ASSERT_NEAR(difference, 0, GetParam().tolerance) << "token " << id;
    }
  }

  struct Sequence {
    int32_t length = 0;  // of its prompt
    Pooling pooling = Pooling::kNone;
    int32_t fed = 0;
    int32_t num_sampled = 0;
    int32_t row = -1;         // of the step that sampled last
    TokenCounts counts = {};  // up to the step waited for last
  };

  ReferencePrompt prompt_ = LoadReferencePrompt();
  std::unique_ptr<Backend> backend_;
  Sampler sampler_{prompt_.vocab_size()};
  std::array<SamplingParams, Sizes::kMaxSequences> params_;
  std::array<Sequence, Sizes::kMaxSequences> sequences_;
  PagedBatch paged_{Sizes::kBlockSize, {}};
  Asked asked_;
  int num_adjusted_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Backends, MixedOutputsTest, testing::ValuesIn(OutputsVariants()),
                         [](const auto& variant) { return variant.param.name; });

TEST_P(MixedOutputsTest, EveryOutputIsAsIfAlone) {
  ASSERT_EQ(prompt_.size(), 19);
  const std::vector<StepResult> one = Play(1);
  ASSERT_EQ(one.size(), size_t{kRounds * kSteps});
  if (OutputsLogits(*backend_).has_value()) {
    EXPECT_GT(num_adjusted_, 0);
  }
  for (int again = 0; again < 3; ++again) {
    const std::vector<StepResult> two = Play(backend_->info().pipeline_depth);
    ASSERT_EQ(two.size(), one.size());
    for (size_t step = 0; step < one.size(); ++step) {
      ASSERT_EQ(two[step].token_ids, one[step].token_ids) << "step " << step;
      ASSERT_TRUE(SameBits(two[step].logprobs, one[step].logprobs)) << "step " << step;
      ASSERT_TRUE(SameBits(two[step].scores, one[step].scores)) << "step " << step;
      ASSERT_TRUE(SameBits(two[step].pooled, one[step].pooled)) << "step " << step;
    }
  }
}

}  // namespace
}  // namespace ferrite::test

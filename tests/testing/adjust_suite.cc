// Penalties, biases, allowed and banned tokens of a step's samples, on any backend
// (outputs_backend.h), against logits that transformers knows: sequences are fed a fixture's prompt
// whatever they sample, so that the logits of every step are the reference's, and the adjuster and
// sampler of the engine say what is to be chosen from them.
#include <algorithm>
#include <cmath>
#include <deque>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/logit_adjuster.h"
#include "engine/sampler.h"
#include "engine/token_counts.h"
#include "gtest/gtest.h"
#include "tests/testing/outputs_backend.h"
#include "tests/testing/paged_batch.h"
#include "tests/testing/reference_prompt.h"

namespace ferrite::test {
namespace {

using Sizes = OutputsSizes;

// What the test knows of a sequence. `counts` follow what the backend says it has sampled.
struct Sequence {
  SamplingParams params;
  int32_t slot = 0;
  int32_t num_prompt_tokens = 0;
  std::vector<TokenId> history;  // what its slot was told that it has so far, and what it sampled
  TokenCounts counts;
  int32_t num_fed = 0;      // of the fixture's prompt, since the slot was assigned
  int32_t num_planned = 0;  // tokens sampled or being sampled
  int num_adjusted = 0;     // samples that would have been others without adjustment
};

struct Row {
  Sequence* sequence;
  int32_t position;
  int32_t output_index;
};

class AdjustTest : public testing::TestWithParam<OutputsVariant> {
 protected:
  void SetUp() override {
    if (!OutputsDeviceIsThere()) {
      GTEST_SKIP() << "no GPU is visible";
    }
    backend_ = CreateOutputsBackend(GetParam(), prompt_.config, *prompt_.checkpoint);
    ASSERT_TRUE(backend_->info().adjusts_logits);
    depth_ = backend_->info().pipeline_depth;
    paged_.NextStep();
  }

  // A sequence of which `history`, the first `num_prompt_tokens` of it its prompt, is there.
  Sequence* Begin(int32_t slot, const SamplingParams& params, std::vector<TokenId> history = {},
                  int32_t num_prompt_tokens = 0) {
    Sequence& sequence = sequences_.emplace_back();
    sequence.params = params;
    sequence.history = std::move(history);
    sequence.num_prompt_tokens = num_prompt_tokens;
    sequence.counts.Reset(sequence.history, num_prompt_tokens);
    sequence.num_planned = static_cast<int32_t>(sequence.history.size()) - num_prompt_tokens;
    Assign(&sequence, slot);
    return &sequence;
  }

  // Puts the sequence into a slot, as if it had none.
  void Assign(Sequence* sequence, int32_t slot) {
    sequence->slot = slot;
    sequence->num_fed = 0;
    paged_.Assign(slot, sequence->params);
    SlotAssignment& assignment = paged_.batch().slot_assignments.back();
    assignment.tokens = sequence->history;
    assignment.num_prompt_tokens = sequence->num_prompt_tokens;
  }

  // Feeds the sequence the next `size` tokens of the fixture's prompt.
  void Feed(Sequence* sequence, size_t size, bool sample = true) {
    paged_.Append(sequence->slot, std::span(prompt_.tokens).subspan(sequence->num_fed, size),
                  sample, sequence->num_planned);
    sequence->num_fed += static_cast<int32_t>(size);
    if (sample) {
      building_.push_back({sequence, sequence->num_fed - 1, sequence->num_planned++});
    }
  }

  // Keeps as many steps outstanding as the test wants.
  void Launch() {
    ASSERT_EQ(backend_->Launch(paged_.batch()), absl::OkStatus());
    launched_.push_back(std::exchange(building_, {}));
    paged_.NextStep();
    while (static_cast<int32_t>(launched_.size()) >= depth_) {
      Wait();
    }
  }

  void WaitForAll() {
    while (!launched_.empty()) {
      Wait();
    }
  }

  void Wait() {
    ASSERT_EQ(backend_->Wait(&result_), absl::OkStatus());
    const std::vector<Row> rows = std::move(launched_.front());
    launched_.pop_front();
    ASSERT_EQ(result_.token_ids.size(), rows.size());
    const auto logits =
        launched_.empty() ? OutputsLogits(*backend_) : std::optional<std::vector<float>>();
    for (size_t r = 0; r < rows.size(); ++r) {
      SCOPED_TRACE(testing::Message()
                   << "slot " << rows[r].sequence->slot << " at " << rows[r].position);
      const TokenId token = result_.token_ids[r];
      ASSERT_TRUE(token >= 0 && token < prompt_.vocab_size()) << token;
      CheckChoice(rows[r], token);
      CheckLogprobs(rows[r], token, r);
      if (logits.has_value()) {
        CheckExactly(rows[r], token, std::span(*logits).subspan(r * prompt_.vocab_size()));
      }
      rows[r].sequence->counts.AddOutput(token);
      rows[r].sequence->history.push_back(token);
    }
  }

  // The reference's logits, adjusted: what is chosen from them greedily is chosen, unless another
  // one is as good as rounding can tell; nothing barred is ever chosen.
  void CheckChoice(const Row& row, TokenId token) {
    const SamplingParams& params = row.sequence->params;
    const std::span<const float> raw = prompt_.Logits(row.position);
    std::vector<float> logits(raw.begin(), raw.end());
    AdjustLogits(params, row.sequence->counts, logits);
    for (const TokenId id : params.end_token_ids) {
      if (row.output_index < params.min_new_tokens) {
        logits[id] = -INFINITY;
      }
    }
    ASSERT_TRUE(std::isfinite(logits[token])) << "token " << token << " is barred";
    if (params.temperature == 0) {
      const float stretch =
          std::max({1.0f, params.repetition_penalty, 1 / params.repetition_penalty});
      const auto likeliest = std::max_element(logits.begin(), logits.end());
      EXPECT_GE(logits[token], *likeliest - 2 * GetParam().tolerance * stretch)
          << token << " for " << likeliest - logits.begin();
    }
    const auto plain = std::max_element(raw.begin(), raw.end());
    row.sequence->num_adjusted += raw[token] < *plain - 4 * GetParam().tolerance ? 1 : 0;
  }

  // They are of the raw logits, whatever was adjusted.
  void CheckLogprobs(const Row& row, TokenId token, size_t r) {
    const int32_t wanted = row.sequence->params.num_logprobs;
    if (wanted < 0) {
      return;
    }
    const std::vector<double> expected = prompt_.LogSoftmax(row.position);
    const LogprobView logprobs = result_.logprobs[static_cast<int32_t>(r)];
    EXPECT_NEAR(logprobs.own, expected[token], GetParam().tolerance);
    ASSERT_EQ(logprobs.top.size(), static_cast<size_t>(wanted));
    for (const TokenLogprob& top : logprobs.top) {
      EXPECT_NEAR(top.logprob, expected[top.id], GetParam().tolerance);
    }
  }

  // From the backend's own logits there is no doubt.
  void CheckExactly(const Row& row, TokenId token, std::span<const float> logits) {
    std::vector<float> copy(logits.begin(), logits.begin() + prompt_.vocab_size());
    EXPECT_EQ(token,
              sampler_.Sample(copy, row.sequence->params, row.output_index, row.sequence->counts));
    ++num_exact_;
  }

  // Those that the reference's logits have at the top somewhere, the first ones first.
  std::vector<TokenId> Favourites() const {
    std::vector<TokenId> ids;
    for (int32_t position = 0; position < prompt_.size(); ++position) {
      const auto row = prompt_.Logits(position);
      const auto id = static_cast<TokenId>(std::max_element(row.begin(), row.end()) - row.begin());
      if (std::find(ids.begin(), ids.end(), id) == ids.end()) {
        ids.push_back(id);
      }
    }
    return ids;
  }

  // One of each kind, the first plain.
  std::vector<SamplingParams> Kinds() const {
    std::vector<TokenId> favourites = Favourites();
    std::vector<SamplingParams> kinds(Sizes::kMaxSequences);
    for (SamplingParams& params : kinds) {
      params.temperature = 0;
    }
    kinds[0].num_logprobs = 3;
    kinds[1].repetition_penalty = 1.7f;
    kinds[1].frequency_penalty = 0.4f;
    kinds[1].presence_penalty = 0.3f;
    for (const TokenId id : favourites) {
      kinds[2].logit_bias.push_back({id, -100.0f});
    }
    kinds[2].logit_bias.push_back({prompt_.vocab_size() - 1, 0.25f});
    kinds[2].logit_bias.push_back({prompt_.vocab_size() + 7, 100.0f});
    kinds[2].num_logprobs = 20;
    kinds[3].allowed_token_ids = {0, 31, 32, 33, prompt_.vocab_size() - 1, prompt_.vocab_size()};
    std::sort(favourites.begin(), favourites.end());
    kinds[4].banned_token_ids = favourites;
    kinds[4].num_logprobs = 0;
    kinds[5].repetition_penalty = 0.8f;
    kinds[5].frequency_penalty = 1.5f;
    kinds[5].logit_bias = {{favourites[0], 1.0f}};
    kinds[5].allowed_token_ids = favourites;
    kinds[5].banned_token_ids = {favourites[1]};
    kinds[5].min_new_tokens = 4;
    kinds[5].end_token_ids = {favourites[0], 5};
    kinds[5].num_logprobs = 5;
    return kinds;
  }

  ReferencePrompt prompt_ = LoadReferencePrompt();
  std::unique_ptr<Backend> backend_;
  Sampler sampler_{prompt_.vocab_size()};
  PagedBatch paged_{Sizes::kBlockSize, SpreadBlocks(Sizes::kNumBlocks)};
  int32_t depth_ = 1;
  std::deque<Sequence> sequences_;
  std::vector<Row> building_;
  std::deque<std::vector<Row>> launched_;
  StepResult result_;
  int num_exact_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Backends, AdjustTest, testing::ValuesIn(OutputsVariants()),
                         [](const auto& variant) { return variant.param.name; });

// First in pieces of the prompt, then a token each, in changing order and company.
TEST_P(AdjustTest, EveryKindBesideEveryOther) {
  std::vector<TokenId> history = Favourites();
  history.resize(6);
  history.push_back(history[1]);
  std::vector<Sequence*> sequences;
  for (const SamplingParams& params : Kinds()) {
    const auto slot = static_cast<int32_t>(sequences.size());
    sequences.push_back(Begin(slot, params, history, 4));
    Feed(sequences.back(), 3 + slot, slot % 2 == 0);
  }
  Launch();
  for (int step = 0; step < 9; ++step) {
    for (int32_t i = 0; i < Sizes::kMaxSequences; ++i) {
      const int32_t slot = (i + step) % Sizes::kMaxSequences;
      // Steps of all, of the plain one alone, of the others alone.
      if (step % 3 == 0 || (slot == 0) == (step % 3 == 1)) {
        Feed(sequences[slot], 1);
      }
    }
    Launch();
  }
  WaitForAll();
  EXPECT_EQ(sequences[0]->num_adjusted, 0);
  for (int32_t slot = 1; slot < Sizes::kMaxSequences; ++slot) {
    EXPECT_GT(sequences[slot]->num_adjusted, 0) << slot;
  }
}

// Step by step, so that logits can be looked at; also of rows that draw.
TEST_P(AdjustTest, ChoosesWhatTheSamplerDoes) {
  depth_ = 1;
  std::vector<Sequence*> sequences;
  for (SamplingParams params : Kinds()) {
    const auto slot = static_cast<int32_t>(sequences.size());
    params.temperature = slot == 3 ? 0 : 1.3f;
    params.top_p = slot % 2 == 0 ? 0.8f : 1.0f;
    params.top_k = slot % 3 == 0 ? 12 : 0;
    params.seed = 77 + slot;
    sequences.push_back(Begin(slot, params, {prompt_.tokens[0], 7, 7, 9, 7}, 3));
    Feed(sequences.back(), 2);
  }
  Launch();
  for (int step = 0; step < 12; ++step) {
    for (Sequence* const sequence : sequences) {
      Feed(sequence, 1 + (step % 4 == 3 ? 1 : 0));
    }
    Launch();
  }
  RecordProperty("exact", num_exact_);
}

// A slot forgets everything of the sequence before, also while that one's last step is under way.
TEST_P(AdjustTest, ReassignedSlots) {
  const std::vector<SamplingParams> kinds = Kinds();
  for (size_t round = 0; round < 2 * kinds.size(); ++round) {
    std::vector<Sequence*> sequences;
    for (int32_t slot = 0; slot < 3; ++slot) {
      sequences.push_back(Begin(slot, kinds[(round * (slot + 1) + slot) % kinds.size()],
                                std::vector<TokenId>(round, 7 + slot),
                                static_cast<int32_t>(round / 2)));
      Feed(sequences.back(), 4);
    }
    Launch();
    for (int step = 0; step < 2; ++step) {
      for (Sequence* const sequence : sequences) {
        Feed(sequence, 1);
      }
      Launch();
    }
  }
  WaitForAll();
}

// Those that were preempted come back with all their tokens, in another slot.
TEST_P(AdjustTest, ResumedSequencesKeepTheirCounts) {
  const SamplingParams counts = {.temperature = 0, .frequency_penalty = 2.0f};
  Sequence* const sequence = Begin(1, counts);
  Sequence* const other = Begin(2, counts);
  for (int round = 0; round < 3; ++round) {
    for (int step = 0; step < 5; ++step) {
      Feed(sequence, step == 0 ? 4 : 1);
      if (other->num_fed + 1 < prompt_.size()) {
        Feed(other, 1);
      }
      Launch();
    }
    WaitForAll();
    Assign(sequence, (sequence->slot + 3) % Sizes::kMaxSequences);
  }
  EXPECT_EQ(sequence->history.size(), 15u);
  EXPECT_GT(sequence->num_adjusted, 3);
}

// More at once than any usual step has.
TEST_P(AdjustTest, ManyBiasesAtOnce) {
  for (int round = 0; round < 2; ++round) {
    std::vector<Sequence*> sequences;
    for (int32_t slot = 0; slot < Sizes::kMaxSequences; ++slot) {
      SamplingParams params = {.temperature = 0, .presence_penalty = 1};
      for (TokenId id = 1023; id >= 0; --id) {
        params.logit_bias.push_back({id, static_cast<float>((id * 37 + slot) % 11)});
      }
      params.banned_token_ids = {3, 20, 64};
      std::vector<TokenId> history(100);
      std::iota(history.begin(), history.end(), slot);  // some beyond the vocabulary
      sequences.push_back(Begin(slot, params, history, 50));
      Feed(sequences.back(), 5);
    }
    Launch();
    for (int step = 0; step < 3; ++step) {
      for (Sequence* const sequence : sequences) {
        Feed(sequence, 1);
      }
      Launch();
    }
  }
  WaitForAll();
}

// Left to themselves, sequences say the same whether each token goes from step to step on the
// device or by way of the host.
TEST_P(AdjustTest, AdjustedTokensFeedTheNextStep) {
  SamplingParams params[3];
  params[0] = {.temperature = 0, .frequency_penalty = 3, .presence_penalty = 1};
  params[1] = {.temperature = 0};
  params[2] = {.temperature = 1, .seed = 3, .repetition_penalty = 1.5f};
  constexpr int kSteps = 20;
  std::vector<TokenId> said[2][3];
  for (const bool on_device : {true, false}) {
    const int32_t depth = on_device ? backend_->info().pipeline_depth : 1;
    int32_t outstanding = 0;
    const auto wait = [&] {
      ASSERT_EQ(backend_->Wait(&result_), absl::OkStatus());
      --outstanding;
      for (int s = 0; s < 3; ++s) {
        said[on_device][s].push_back(result_.token_ids[s]);
      }
    };
    for (int step = 0; step < kSteps; ++step) {
      for (int32_t s = 0; s < 3; ++s) {
        if (step == 0) {
          paged_.Assign(s, params[s]);
          SlotAssignment& assignment = paged_.batch().slot_assignments.back();
          assignment.tokens = std::span(prompt_.tokens).first(4);
          assignment.num_prompt_tokens = 4;
          paged_.Append(s, assignment.tokens, true);
        } else if (on_device) {
          paged_.Append(s, std::vector<TokenId>{-1}, true, step, s);
        } else {
          paged_.Append(s, std::span(&said[0][s].back(), 1), true, step);
        }
      }
      ASSERT_EQ(backend_->Launch(paged_.batch()), absl::OkStatus());
      paged_.NextStep();
      if (++outstanding == depth) {
        wait();
      }
    }
    while (outstanding > 0) {
      wait();
    }
  }
  for (int s = 0; s < 3; ++s) {
    EXPECT_EQ(said[1][s], said[0][s]) << s;
    EXPECT_EQ(said[1][s].size(), static_cast<size_t>(kSteps));
  }
  EXPECT_NE(said[1][0], said[1][1]);
}

}  // namespace
}  // namespace ferrite::test

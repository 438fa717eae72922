#include "engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/testing/stream_reader.h"

namespace ferrite {
namespace {

using test::StreamReader;
using ::testing::ElementsAre;

// Drives a scheduler by hand: every sampled token is `next_token`.
class SchedulerTest : public ::testing::Test, public Scheduler::Observer {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::Load(std::string(FERRITE_SOURCE_DIR) + "/models/stories260k");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  void Start(int32_t num_blocks, int32_t block_size, int32_t max_running, int32_t max_step_tokens,
             int32_t mixed_step_tokens = BackendInfo().mixed_step_tokens) {
    BackendInfo info;
    info.num_blocks = num_blocks;
    info.block_size = block_size;
    Start(info, {max_running, max_step_tokens, mixed_step_tokens});
  }
  void Start(const BackendInfo& info, SchedulerOptions options) {
    block_size_ = info.block_size;
    options_ = options;
    completed_ = 0;
    scheduler_ = std::make_unique<Scheduler>(info, options_, this);
  }

  std::shared_ptr<StreamReader> Add(int32_t prompt_tokens, int32_t max_new_tokens,
                                    int32_t priority = 0, const std::string& client = "",
                                    double waited_seconds = 0, Pooling pooling = Pooling::kNone) {
    EngineRequest request;
    request.pooling = pooling;
    request.client = client;
    request.received = now_ - std::chrono::milliseconds(static_cast<int64_t>(1e3 * waited_seconds));
    request.prompt.assign(prompt_tokens, 300);
    request.max_new_tokens = max_new_tokens;
    request.priority = priority;
    request.sampling.end_token_ids = {2};
    auto reader = StreamReader::Create();
    scheduler_->Add(
        std::make_unique<Sequence>(std::move(request), *tokenizer_, block_size_, reader->stream()));
    return reader;
  }

  std::shared_ptr<StreamReader> AddEmbedding(int32_t prompt_tokens) {
    return Add(prompt_tokens, 0, 0, "", 0, Pooling::kLast);
  }

  // Of the step planned last: what there is besides the tokens of those that decode.
  struct Kinds {
    int32_t decodes = 0;
    int32_t prompt_tokens = 0;
  };
  Kinds CountKinds() const {
    Kinds kinds;
    for (int32_t row = 0; row < batch_.num_samples(); ++row) {
      const int32_t s = batch_.sample_seqs[row];
      const bool one = batch_.cu_seqlens[s + 1] - batch_.cu_seqlens[s] == 1;
      kinds.decodes += one && batch_.output_indices[row] > 0 ? 1 : 0;
    }
    kinds.prompt_tokens = batch_.num_tokens() - kinds.decodes;
    return kinds;
  }

  // Plans a step; its chunk lengths, in the order of the batch.
  std::vector<int32_t> Plan() {
    scheduler_->Plan(now_, &batch_);
    if (!batch_.empty()) {
      rows_[batch_.step] = batch_.num_samples();
    }
    std::vector<int32_t> lengths;
    for (int32_t s = 0; s < batch_.num_sequences(); ++s) {
      lengths.push_back(batch_.cu_seqlens[s + 1] - batch_.cu_seqlens[s]);
    }
    return lengths;
  }

  void Complete(TokenId token = 300) {
    StepResult result;
    result.step = ++completed_;
    result.token_ids.assign(rows_[completed_], token);
    for (int32_t row = 0; row <= rows_[completed_]; ++row) {
      result.row_offsets.push_back(row);
    }
    const absl::Status status = scheduler_->Complete(result, now_);
    ASSERT_TRUE(status.ok()) << status;
  }

  void OnLeftWaiting(const Sequence&) override { ++left_waiting_; }
  void OnFinished(const Sequence&) override { ++finished_; }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Scheduler> scheduler_;
  SchedulerOptions options_;
  int32_t block_size_ = 0;
  Batch batch_;
  std::map<uint64_t, int32_t> rows_;
  uint64_t completed_ = 0;
  int left_waiting_ = 0;
  int finished_ = 0;
  Clock::time_point now_ = Clock::now();
};

TEST_F(SchedulerTest, SharesOneBudgetBetweenDecodesAndPrefillChunks) {
  Start(64, 4, 4, 8);
  Add(3, 10);
  EXPECT_THAT(Plan(), ElementsAre(3));
  Complete();
  Add(20, 10);
  EXPECT_THAT(Plan(), ElementsAre(1, 7));  // the decode first, the chunk takes the rest
  EXPECT_THAT(batch_.sample_seqs, ElementsAre(0));
  Complete();
  EXPECT_THAT(Plan(), ElementsAre(1, 7));
  Complete();
  EXPECT_THAT(Plan(), ElementsAre(1, 6));  // the prompt's end samples too
  EXPECT_THAT(batch_.sample_seqs, ElementsAre(0, 1));
  EXPECT_THAT(batch_.kv_lens, ElementsAre(6, 20));
  Complete();
  EXPECT_THAT(Plan(), ElementsAre(1, 1));
}

TEST_F(SchedulerTest, MixedStepsAreAsTheBackendSuggestsUnlessToldOtherwise) {
  BackendInfo info;
  info.num_blocks = 64;
  info.block_size = 4;
  info.mixed_step_tokens = 9;
  const auto second_step = [&](int32_t mixed_step_tokens) {
    Start(info, {/*max_running=*/4, /*max_step_tokens=*/32, mixed_step_tokens});
    Add(4, 10);
    Plan();
    Complete();
    Add(30, 10);
    return Plan();
  };
  EXPECT_THAT(second_step(0), ElementsAre(1, 8));
  EXPECT_EQ(scheduler_->options().mixed_step_tokens, 9);
  EXPECT_THAT(second_step(20), ElementsAre(1, 19));
  EXPECT_EQ(scheduler_->options().mixed_step_tokens, 20);
}

TEST(SchedulerOptionsTest, AStepsTokensDependOnHowManyDecode) {
  const SchedulerOptions options{.max_step_tokens = 2048, .mixed_step_tokens = 256};
  EXPECT_EQ(options.StepTokens(0), 2048);
  EXPECT_EQ(options.StepTokens(1), 256);
  EXPECT_EQ(options.StepTokens(80), 256);
  EXPECT_EQ(options.StepTokens(256), 768);
  EXPECT_EQ(options.StepTokens(2048), 2048);
  const SchedulerOptions small{.max_step_tokens = 100, .mixed_step_tokens = 65536};
  for (const int32_t decodes : {0, 1, 80, 100}) EXPECT_EQ(small.StepTokens(decodes), 100);
}

TEST_F(SchedulerTest, HoldsPromptsBackBesideThoseThatDecode) {
  struct Case {
    int32_t decodes, max_step_tokens, step_tokens;
  };
  for (const Case& c : {Case{0, 2048, 2048}, Case{1, 2048, 256}, Case{80, 2048, 256},
                        Case{256, 2048, 768}, Case{80, 100, 100}, Case{1, 100, 100}}) {
    SCOPED_TRACE(absl::StrCat(c.decodes, " decode, ", c.max_step_tokens));
    Start(4096, 16, /*max_running=*/257, c.max_step_tokens, /*mixed_step_tokens=*/256);
    for (int32_t i = 0; i < c.decodes; ++i) Add(1, 10);
    if (c.decodes > 0) {
      Plan();
      Complete();
    }
    Add(4000, 10);
    Plan();
    EXPECT_EQ(batch_.num_tokens(), c.step_tokens);
    EXPECT_EQ(CountKinds().decodes, c.decodes);
    EXPECT_EQ(scheduler_->num_decoding(), c.decodes);
  }
}

// An embedding's input is a prompt like any other; alone it has the whole step.
TEST_F(SchedulerTest, HoldsEmbeddingsBackBesideThoseThatDecode) {
  Start(64, 4, 4, /*max_step_tokens=*/32, /*mixed_step_tokens=*/8);
  AddEmbedding(40);
  EXPECT_THAT(Plan(), ElementsAre(32));
  Add(1, 10);
  EXPECT_THAT(Plan(), ElementsAre(8, 1)) << "nobody has decoded yet";
  Complete();
  Complete();
  AddEmbedding(10);
  EXPECT_THAT(Plan(), ElementsAre(1, 7));
  Complete();
  EXPECT_THAT(Plan(), ElementsAre(1, 3));
  EXPECT_EQ(batch_.pooled_seqs.size(), 1u);
}

// A prompt of which one token is left to compute does not decode.
TEST_F(SchedulerTest, CountsAPromptsLastTokenAsAPrompts) {
  Start(64, 4, 8, /*max_step_tokens=*/8, /*mixed_step_tokens=*/1);
  Add(3, 10);
  Add(6, 10);
  EXPECT_THAT(Plan(), ElementsAre(3, 5));
  Add(10, 10);
  EXPECT_THAT(Plan(), ElementsAre(1, 1, 1)) << "three tokens, since one decodes";
  EXPECT_EQ(scheduler_->num_decoding(), 1);
  Complete();
  EXPECT_THAT(Plan(), ElementsAre(1, 1, 4)) << "six, since two do";
}

TEST_F(SchedulerTest, APromptAdvancesHoweverManyDecode) {
  Start(64, 4, /*max_running=*/4, /*max_step_tokens=*/4, /*mixed_step_tokens=*/1);
  for (int i = 0; i < 3; ++i) Add(1, 9);
  Plan();
  Complete();
  Add(5, 3);
  for (int step = 0; step < 5; ++step) {
    EXPECT_THAT(Plan(), ElementsAre(1, 1, 1, 1));  // all that max_step_tokens leaves
    Complete();
  }
  Add(5, 1);
  EXPECT_THAT(Plan(), ElementsAre(1, 1, 1, 1)) << "all slots decode; the newcomer has none";
  EXPECT_EQ(scheduler_->num_decoding(), 4);
  while (scheduler_->has_work()) {
    Complete();
    Plan();
  }
  EXPECT_EQ(finished_, 5);
}

// Any mixture, preempted at times: no step with decodes and chunks has more than its budget, and
// all of it ends.
TEST_F(SchedulerTest, MixedStepsKeepTheirBudget) {
  int mixed = 0;
  for (int seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const int32_t max_running = 2 + static_cast<int32_t>(random() % 12);
    Start(60, 4, max_running, max_running + static_cast<int32_t>(random() % 60),
          1 + static_cast<int32_t>(random() % 40));
    for (int step = 0; step < 300 || scheduler_->has_work(); ++step) {
      ASSERT_LT(step, 5000);
      if (step < 200 && random() % 3 == 0) {
        const auto tokens = [&] { return 1 + static_cast<int32_t>(random() % 60); };
        random() % 4 == 0 ? AddEmbedding(tokens()) : Add(tokens(), tokens());
      }
      Plan();
      const auto [decodes, prompt_tokens] = CountKinds();
      if (decodes > 0 && prompt_tokens > 0) {
        ++mixed;
        ASSERT_LE(batch_.num_tokens(), std::min(options_.max_step_tokens,
                                                std::max(options_.mixed_step_tokens, 3 * decodes)));
      }
      if (!batch_.empty()) Complete();
    }
    EXPECT_EQ(scheduler_->blocks().num_free(), 60);
  }
  EXPECT_GT(mixed, 1000);
}

TEST_F(SchedulerTest, FeedsSampledTokensOnTheDeviceWhenAStepIsOutstanding) {
  Start(64, 4, 4, 32);
  Add(3, 3);
  Add(2, 3);
  EXPECT_THAT(Plan(), ElementsAre(3, 2));
  EXPECT_THAT(batch_.input_rows, ElementsAre(-1, -1));
  EXPECT_THAT(Plan(), ElementsAre(1, 1));
  EXPECT_THAT(batch_.input_rows, ElementsAre(0, 1));
  EXPECT_THAT(batch_.positions, ElementsAre(3, 2));
  EXPECT_THAT(batch_.output_indices, ElementsAre(1, 1));
  Complete();
  EXPECT_THAT(Plan(), ElementsAre(1, 1));
  Complete();
  // The third token, the last allowed, is in flight: known when planning.
  EXPECT_THAT(Plan(), ElementsAre());
  Complete();
  EXPECT_EQ(finished_, 2);
  EXPECT_FALSE(scheduler_->has_work());
  EXPECT_EQ(scheduler_->blocks().num_free(), 64);
}

TEST_F(SchedulerTest, DiscardsWhatWasSampledAfterALateStop) {
  Start(64, 4, 4, 32);
  const auto reader = Add(3, 10);
  Plan();
  Plan();
  Complete(/*token=*/2);  // an end token, while the next step runs already
  EXPECT_EQ(finished_, 1);
  EXPECT_LT(scheduler_->blocks().num_free(), 64);  // still in flight
  EXPECT_THAT(Plan(), ElementsAre());
  Complete(/*token=*/301);
  EXPECT_EQ(scheduler_->blocks().num_free(), 64);
  reader->OnOutput();
  EXPECT_THAT(reader->tokens(), ElementsAre(2));
  EXPECT_EQ(reader->text(), "");
  EXPECT_EQ(reader->completion().completion_tokens, 1);
  EXPECT_EQ(reader->completion().reason, FinishReason::kStop);
}

TEST_F(SchedulerTest, AdmitsInOrderOfPriorityThenArrival) {
  Start(64, 4, 1, 32);
  Add(5, 1);
  Add(6, 1);
  Add(7, 1, /*priority=*/1);
  EXPECT_THAT(Plan(), ElementsAre(7));
  Complete();
  EXPECT_THAT(Plan(), ElementsAre(5));
  Complete();
  EXPECT_THAT(Plan(), ElementsAre(6));
}

TEST_F(SchedulerTest, PreemptsTheYoungestWhenTheOldestNeedsItsBlocks) {
  Start(/*num_blocks=*/6, /*block_size=*/2, 4, 32);
  Add(4, 8);
  EXPECT_THAT(Plan(), ElementsAre(4));
  Complete();
  Add(3, 6);
  EXPECT_THAT(Plan(), ElementsAre(1, 3));  // 3 + 2 blocks, one free
  Complete();
  EXPECT_THAT(Plan(), ElementsAre(1, 1));
  Complete();
  EXPECT_THAT(Plan(), ElementsAre(1));  // the old one took the last block; the young one sits out
  EXPECT_EQ(scheduler_->blocks().num_free(), 0);
  Complete();
  EXPECT_THAT(Plan(), ElementsAre(1));
  Complete();
  EXPECT_EQ(scheduler_->num_preemptions(), 0u);
  EXPECT_THAT(Plan(), ElementsAre(1));  // a fifth block: the young one gives up its two
  EXPECT_EQ(scheduler_->num_preemptions(), 1u);
  EXPECT_EQ(scheduler_->blocks().num_free(), 1);
  EXPECT_EQ(scheduler_->num_waiting(), 1);
}

TEST_F(SchedulerTest, PreemptsTheLowerPriorityThoughItIsOlder) {
  Start(/*num_blocks=*/6, /*block_size=*/2, 4, 32);
  Add(4, 8, /*priority=*/0);
  EXPECT_THAT(Plan(), ElementsAre(4));
  Complete();
  Add(3, 6, /*priority=*/1);
  EXPECT_THAT(Plan(), ElementsAre(1, 3));
  EXPECT_THAT(batch_.kv_lens, ElementsAre(5, 3));
  Complete();
  for (int step = 0; step < 4; ++step) {
    Plan();
    Complete();
  }
  EXPECT_EQ(scheduler_->num_preemptions(), 1u);
  EXPECT_THAT(Plan(), ElementsAre(1));
  EXPECT_THAT(batch_.kv_lens, ElementsAre(8)) << "the one that came later has gone on";
}

TEST_F(SchedulerTest, FreesAPreemptedSequenceOnlyAfterItsLastStep) {
  Start(/*num_blocks=*/5, /*block_size=*/2, 4, 32);
  Add(4, 5);
  const auto young = Add(2, 4);
  EXPECT_THAT(Plan(), ElementsAre(4, 2));
  EXPECT_THAT(Plan(), ElementsAre(1, 1));  // 3 + 2 blocks, none free
  Complete();
  EXPECT_THAT(Plan(), ElementsAre(1, 1));
  Complete();
  // The old one wants a fourth block: the young one must go, but is in flight.
  EXPECT_THAT(Plan(), ElementsAre());
  EXPECT_EQ(scheduler_->num_preemptions(), 1u);
  EXPECT_EQ(scheduler_->blocks().num_free(), 0);
  Complete();
  EXPECT_EQ(scheduler_->blocks().num_free(), 2);
  EXPECT_THAT(Plan(), ElementsAre(1));
  Complete();
  EXPECT_THAT(Plan(), ElementsAre(1));
  Complete();
  young->OnOutput();
  EXPECT_EQ(young->tokens().size(), 3u);  // nothing of its output is lost
  // The old one has finished; the young one starts over with prompt and output.
  EXPECT_THAT(Plan(), ElementsAre(5));
  EXPECT_THAT(batch_.output_indices, ElementsAre(3));
  EXPECT_EQ(batch_.slot_assignments.size(), 1u);
  Complete();
  EXPECT_EQ(finished_, 2);
  EXPECT_EQ(left_waiting_, 2);  // the preempted one did not count as waiting again
  EXPECT_EQ(scheduler_->blocks().num_free(), 5);
}

TEST_F(SchedulerTest, EndsCancelledAndLateSequencesAtTheNextPlan) {
  Start(64, 4, 4, 32);
  const auto cancelled = Add(3, 10);
  const auto aborted = Add(3, 10);
  EngineRequest request;
  request.prompt = {300};
  request.max_new_tokens = 10;
  request.deadline = now_ + std::chrono::seconds(1);
  const auto late = StreamReader::Create();
  scheduler_->Add(
      std::make_unique<Sequence>(std::move(request), *tokenizer_, block_size_, late->stream()));
  EXPECT_THAT(Plan(), ElementsAre(3, 3, 1));
  cancelled->stream()->Cancel();
  aborted->stream()->Abort();
  now_ += std::chrono::seconds(2);
  EXPECT_THAT(Plan(), ElementsAre());
  EXPECT_EQ(finished_, 3);
  Complete();
  EXPECT_EQ(scheduler_->blocks().num_free(), 64);
  for (const auto& reader : {cancelled, aborted, late}) {
    reader->OnOutput();
    EXPECT_TRUE(reader->tokens().empty());
  }
  EXPECT_EQ(cancelled->completion().status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(late->completion().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(aborted->completion().status.ok());
  EXPECT_EQ(aborted->completion().reason, FinishReason::kAborted);
}

TEST_F(SchedulerTest, RefusesAResultOfAnotherStep) {
  Start(64, 4, 4, 32);
  Add(3, 10);
  Plan();
  StepResult result;
  result.step = 7;
  result.row_offsets = {0, 1};
  result.token_ids = {5};
  EXPECT_EQ(scheduler_->Complete(result, now_).code(), absl::StatusCode::kInternal);
}

// Who runs is told apart by how long their prompts are.
TEST_F(SchedulerTest, ClientsTakeTurns) {
  Start(64, 4, /*max_running=*/4, 64);
  for (int i = 0; i < 6; ++i) {
    Add(2, 1, 0, "many");
  }
  Add(3, 1, 0, "few");
  Add(5, 1, 0, "few");
  Add(7, 1, 0, "one");
  // Whoever has the fewest running, and of those the first to come.
  EXPECT_THAT(Plan(), ElementsAre(2, 3, 7, 2));
  Complete();
  EXPECT_THAT(Plan(), ElementsAre(2, 5, 2, 2)) << "those that remain";
  Complete();
  EXPECT_THAT(Plan(), ElementsAre(2));
  Complete();
  EXPECT_EQ(finished_, 9);
}

TEST_F(SchedulerTest, PriorityIsWorthSomeWaiting) {
  Start(64, 4, /*max_running=*/1, 64);
  Add(2, 1, 1, "a");        // one level: 30 s
  Add(3, 1, 0, "b", 29);    // has waited for less than that
  Add(4, 1, 0, "c", 31);    // and for more
  Add(5, 1, -1, "d", 100);  // at least three levels
  Add(6, 1, -1, "e");
  for (const int32_t expected : {5, 4, 2, 3, 6}) {
    EXPECT_THAT(Plan(), ElementsAre(expected));
    Complete();
  }
}

TEST_F(SchedulerTest, NobodyWaitsForEver) {
  Start(64, 4, /*max_running=*/1, 64);
  const auto low = Add(2, 1, -2, "low");
  for (int i = 0; i < 200 && !low->stream()->ended(); ++i) {
    Add(3, 1, 0, "high");
    now_ += std::chrono::seconds(1);
    Plan();
    Complete();
  }
  EXPECT_TRUE(low->stream()->ended());
  EXPECT_GE(finished_, 60) << "but for two levels of 30 s";
}

}  // namespace
}  // namespace ferrite

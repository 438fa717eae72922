// The suite itself; see logprobs_suite.h.
#include "tests/testing/logprobs_suite.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <deque>
#include <memory>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/paged_batch.h"

namespace ferrite {
namespace {

using Sizes = LogprobsBackendSizes;

constexpr char kModel[] = FERRITE_SOURCE_DIR "/tests/fixtures/models/llama31";

template <typename T>
std::vector<T> ReadTensor(const Checkpoint& file, const std::string& name) {
  const std::span<const std::byte> data = file.Find(name)->data;
  std::vector<T> values(data.size() / sizeof(T));
  std::copy(data.begin(), data.end(), reinterpret_cast<std::byte*>(values.data()));
  return values;
}

// A step that is under way: the position of each of its rows' last tokens, and what they asked for.
struct Expectation {
  std::vector<int32_t> positions;
  std::vector<int32_t> asked;
};

// A prompt whose logits transformers knows at every position.
class LogprobsTest : public testing::Test {
 protected:
  LogprobsTest() {
    config_ = LoadModelConfig(kModel).value();
    checkpoint_ = Checkpoint::Open(kModel).value();
    const auto reference = Checkpoint::Open(std::string(kModel) + "/reference").value();
    tokens_ = ReadTensor<TokenId>(*reference, "tokens.1");
    logits_ = ReadTensor<float>(*reference, "logits.1");
    EXPECT_EQ(logits_.size(), tokens_.size() * static_cast<size_t>(config_.vocab_size));
  }

  void SetUp() override {
    if (!LogprobsDeviceIsThere()) {
      GTEST_SKIP() << "no GPU is visible";
    }
    backend_ = CreateLogprobsBackend(config_, *checkpoint_);
    paged_.NextStep();
  }

  // Adds the prompt's next `size` tokens to the sequence in `slot`.
  void Append(int32_t slot, size_t size, const SamplingParams& params, bool sample = true) {
    paged_.Append(slot, std::span(tokens_).subspan(lengths_[slot], size), sample,
                  static_cast<int32_t>(lengths_[slot]));
    lengths_[slot] += size;
    if (sample) {
      building_.positions.push_back(static_cast<int32_t>(lengths_[slot]) - 1);
      building_.asked.push_back(params.num_logprobs);
    }
  }
  void Assign(int32_t slot, const SamplingParams& params) {
    paged_.Assign(slot, params);
    lengths_[slot] = 0;
  }

  // Keeps as many steps outstanding as the backend may.
  void Launch() {
    ASSERT_EQ(backend_->Launch(paged_.batch()), absl::OkStatus());
    launched_.push_back(building_);
    building_ = {};
    paged_.NextStep();
    if (static_cast<int32_t>(launched_.size()) == backend_->info().pipeline_depth) {
      Wait();
    }
  }

  void Wait() {
    ASSERT_EQ(backend_->Wait(&result_), absl::OkStatus());
    const Expectation expected = launched_.front();
    launched_.pop_front();
    tokens_seen_.insert(tokens_seen_.end(), result_.token_ids.begin(), result_.token_ids.end());
    const size_t rows = expected.asked.size();
    ASSERT_EQ(result_.token_ids.size(), rows);
    if (std::all_of(expected.asked.begin(), expected.asked.end(), [](int n) { return n < 0; })) {
      EXPECT_TRUE(result_.logprobs.empty());
      return;
    }
    ASSERT_EQ(result_.logprobs.size(), static_cast<int32_t>(rows));
    ASSERT_EQ(result_.logprobs.top_offsets.size(), rows + 1);
    EXPECT_EQ(result_.logprobs.top_offsets[0], 0);
    EXPECT_EQ(result_.logprobs.top_offsets[rows],
              static_cast<int32_t>(result_.logprobs.top.size()));
    for (size_t row = 0; row < rows; ++row) {
      SCOPED_TRACE(testing::Message() << "row " << row << " at " << expected.positions[row]);
      CheckRow(row, expected.positions[row], expected.asked[row]);
    }
  }

  void WaitForAll() {
    while (!launched_.empty()) {
      Wait();
    }
  }

  void CheckRow(size_t row, int32_t position, int32_t asked) {
    const int32_t begin = result_.logprobs.top_offsets[row];
    ASSERT_EQ(result_.logprobs.top_offsets[row + 1] - begin, std::max(asked, 0));
    if (asked < 0) {
      EXPECT_TRUE(std::isnan(result_.logprobs.own[row]));
      return;
    }
    const std::vector<double> expected = LogSoftmax(position);
    EXPECT_NEAR(result_.logprobs.own[row], expected[result_.token_ids[row]], LogprobsTolerance());
    std::vector<double> sorted = expected;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    std::set<TokenId> ids;
    for (int32_t i = 0; i < asked; ++i) {
      const TokenLogprob& entry = result_.logprobs.top[begin + i];
      ASSERT_TRUE(entry.id >= 0 && entry.id < config_.vocab_size) << entry.id;
      EXPECT_TRUE(ids.insert(entry.id).second) << entry.id << " twice";
      // The i-th likeliest, or one that is as likely as rounding can tell.
      EXPECT_NEAR(entry.logprob, sorted[i], LogprobsTolerance()) << i;
      EXPECT_NEAR(entry.logprob, expected[entry.id], LogprobsTolerance()) << i;
      if (i > 0) {
        EXPECT_LE(entry.logprob, result_.logprobs.top[begin + i - 1].logprob) << i;
      }
      if (entry.id == result_.token_ids[row]) {
        EXPECT_EQ(entry.logprob, result_.logprobs.own[row]);
      }
      ++entries_checked_;
    }
  }

  // Of the reference's logits, in float64.
  std::vector<double> LogSoftmax(int32_t position) const {
    const auto begin = logits_.begin() + position * config_.vocab_size;
    std::vector<double> row(begin, begin + config_.vocab_size);
    double total = 0;
    for (const double logit : row) {
      total += std::exp(logit);
    }
    for (double& logit : row) {
      logit -= std::log(total);
    }
    return row;
  }

  TokenId Likeliest(int32_t position) const {
    const std::vector<double> row = LogSoftmax(position);
    return static_cast<TokenId>(std::max_element(row.begin(), row.end()) - row.begin());
  }

  static std::vector<int32_t> Blocks() {
    std::vector<int32_t> blocks(Sizes::kNumBlocks);
    std::iota(blocks.begin(), blocks.end(), 0);
    return blocks;
  }

  ModelConfig config_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<TokenId> tokens_;
  std::vector<float> logits_;  // [tokens, vocab]
  std::unique_ptr<Backend> backend_;
  PagedBatch paged_{Sizes::kBlockSize, Blocks()};
  size_t lengths_[Sizes::kMaxSequences] = {};
  Expectation building_;
  std::deque<Expectation> launched_;
  StepResult result_;
  std::vector<TokenId> tokens_seen_;
  int entries_checked_ = 0;
};

// Rows that ask for different things in one step, first in pieces of the prompt, then a token each.
TEST_F(LogprobsTest, MatchTransformersWhateverIsAskedFor) {
  SamplingParams params[] = {
      {.temperature = 0},
      {.temperature = 0, .num_logprobs = 0},
      {.temperature = 0, .num_logprobs = 1},
      {.temperature = 1.5f, .top_k = 3, .seed = 8, .num_logprobs = 5},
      {.temperature = 0.7f, .top_p = 0.5f, .seed = 9, .num_logprobs = 20},
      {.temperature = 0, .min_new_tokens = 100, .num_logprobs = 20},
  };
  // The last one may not take what is likeliest, but is told of it.
  for (size_t position = 0; position < tokens_.size(); ++position) {
    params[5].end_token_ids.push_back(Likeliest(static_cast<int32_t>(position)));
  }
  for (int32_t slot = 0; slot < 6; ++slot) {
    Assign(slot, params[slot]);
    Append(slot, 5 + slot, params[slot]);
  }
  Launch();
  for (int step = 0; step < 8; ++step) {
    for (int32_t i = 0; i < 6; ++i) {
      const int32_t slot = (i + step) % 6;  // in changing order
      Append(slot, 1, params[slot]);
    }
    Launch();
  }
  WaitForAll();
  EXPECT_EQ(entries_checked_, 9 * (1 + 5 + 20 + 20));
}

TEST_F(LogprobsTest, GoWithTheStepThatAskedForThem) {
  const SamplingParams asks = {.temperature = 0, .num_logprobs = 2};
  const SamplingParams does_not = {.temperature = 0};
  for (int round = 0; round < 3; ++round) {
    Assign(2, asks);
    Append(2, 6, asks);
    Launch();
    Append(2, 3, asks, /*sample=*/false);
    Launch();
    Assign(2, does_not);
    Append(2, 6, does_not);
    Launch();
    Append(2, 1, does_not);
    Launch();
  }
  WaitForAll();
  EXPECT_EQ(entries_checked_, 3 * 2);
}

TEST_F(LogprobsTest, ChangeNoToken) {
  for (const int32_t num_logprobs : {-1, 0, 20}) {
    const SamplingParams params = {
        .temperature = 1.5f, .top_p = 0.95f, .seed = 4, .num_logprobs = num_logprobs};
    Assign(1, params);
    Append(1, 4, params);
    Launch();
    for (int i = 0; i < 10; ++i) {
      Append(1, 1, params);
      Launch();
    }
  }
  WaitForAll();
  ASSERT_EQ(tokens_seen_.size(), 33u);
  const auto first = tokens_seen_.begin();
  EXPECT_EQ(std::vector(first, first + 11), std::vector(first + 11, first + 22));
  EXPECT_EQ(std::vector(first, first + 11), std::vector(first + 22, first + 33));
}

TEST_F(LogprobsTest, TooManyAreRefused) {
  const SamplingParams params = {.num_logprobs = 21};
  Assign(0, params);
  Append(0, 1, params);
  const absl::Status status = backend_->Launch(paged_.batch());
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("asks for 21 logprobs"));
}

}  // namespace
}  // namespace ferrite

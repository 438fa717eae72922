#include "cuda/flight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "cuda/gpu_forward.h"
#include "cuda/slot_adjustments.h"
#include "tests/testing/paged_batch.h"

namespace ferrite {
namespace {

using testing::ElementsAre;

BackendInfo Info() {
  BackendInfo info;
  info.num_blocks = 16;
  info.block_size = 4;
  info.max_sequences = 5;
  info.max_step_tokens = 32;
  info.max_sequence_length = 32;
  info.vocab_size = 50;
  info.hidden_size = 8;
  return info;
}

std::vector<int32_t> AsList(const PoolItem& item) {
  return {item.first_token, item.num_tokens, item.slot, item.adds, item.out, item.divisor};
}

// Without a device: what a step asks for, and how its inputs lie.
class FlightTest : public testing::Test {
 protected:
  FlightTest() {
    std::vector<int32_t> blocks(16);
    std::iota(blocks.begin(), blocks.end(), 0);
    paged_ = PagedBatch(4, blocks);
    paged_.NextStep();
  }

  void Assign(int32_t slot, const SamplingParams& params, Pooling pooling) {
    paged_.Assign(slot, params);
    paged_.batch().slot_assignments.back().pooling = pooling;
  }

  void Note() {
    ASSERT_EQ(table_.Apply(paged_.batch()), absl::OkStatus());
    ASSERT_EQ(table_.Check(paged_.batch(), 0), absl::OkStatus());
    flight_.Note(paged_.batch(), table_);
  }

  SlotTable table_{Info()};
  PagedBatch paged_{4, {}};
  Flight flight_;
};

TEST_F(FlightTest, MeansTakeEveryTokenAndLastOnesTheLast) {
  const SamplingParams params;
  Assign(0, params, Pooling::kMean);
  Assign(1, params, Pooling::kLast);
  Assign(2, params, Pooling::kNone);
  Assign(3, params, Pooling::kMean);
  paged_.Append(2, std::vector<TokenId>{9}, true);
  paged_.Append(0, std::vector<TokenId>{1, 2, 3}, false);
  paged_.Append(1, std::vector<TokenId>{4, 5}, false);
  paged_.Append(3, std::vector<TokenId>{6, 7}, false);
  paged_.batch().pooled_seqs = {3};
  Note();
  ASSERT_EQ(flight_.pool_items.size(), 2u);  // the last token is still to come
  EXPECT_THAT(AsList(flight_.pool_items[0]), ElementsAre(1, 3, 0, 0, -1, 3));
  EXPECT_THAT(AsList(flight_.pool_items[1]), ElementsAre(6, 2, 3, 0, 0, 2));
  EXPECT_EQ(flight_.max_pooled_tokens, 3);
  EXPECT_EQ(flight_.num_pooled, 1);

  paged_.NextStep();
  paged_.Append(0, std::vector<TokenId>{4, 5}, false);
  paged_.Append(1, std::vector<TokenId>{6, 7, 8}, false);
  paged_.batch().pooled_seqs = {1, 0};
  Note();
  ASSERT_EQ(flight_.pool_items.size(), 2u);
  EXPECT_THAT(AsList(flight_.pool_items[0]), ElementsAre(0, 2, 0, 1, 1, 5));
  EXPECT_THAT(AsList(flight_.pool_items[1]), ElementsAre(4, 1, 1, 0, 0, 1));
  EXPECT_EQ(flight_.num_pooled, 2);
}

TEST_F(FlightTest, NotesWhatTheSamplesAskFor) {
  const SamplingParams plain;
  const SamplingParams banned = {.banned_token_ids = {3}};
  const SamplingParams logprobs = {.num_logprobs = 2};
  Assign(0, plain, Pooling::kNone);
  Assign(1, banned, Pooling::kNone);
  Assign(2, logprobs, Pooling::kNone);
  paged_.Append(0, std::vector<TokenId>{1}, true);
  paged_.Append(1, std::vector<TokenId>{1}, false);
  paged_.Append(2, std::vector<TokenId>{1}, false);
  Note();
  EXPECT_FALSE(flight_.any_adjusted);
  EXPECT_FALSE(flight_.any_logprobs);
  paged_.batch().sample_seqs = {2, 0, 1};
  paged_.batch().output_indices = {0, 0, 0};
  Note();
  EXPECT_TRUE(flight_.any_adjusted);
  EXPECT_TRUE(flight_.any_logprobs);
  EXPECT_THAT(flight_.num_logprobs, ElementsAre(2, -1, -1));
}

TEST_F(FlightTest, InputsLieSideBySide) {
  const SamplingParams params;
  Assign(4, params, Pooling::kMean);
  Assign(2, params, Pooling::kNone);
  paged_.Append(4, std::vector<TokenId>{1, 2, 3}, false);
  paged_.Append(2, std::vector<TokenId>{4, 5}, true, 7);
  paged_.batch().pooled_seqs = {0};
  paged_.batch().scored = {{.token = 3, .next = 5, .num_top = 20}};
  Note();
  const StepShape shape = flight_.shape();
  EXPECT_EQ(shape.scored, 1);
  EXPECT_EQ(shape.pooled, 1);
  std::vector<int32_t> words(shape.words() + 1, -77);
  const StepInputs inputs = StepInputs::At(words.data(), shape);
  FillStepInputs(paged_.batch(), flight_.pool_items, shape, inputs);
  EXPECT_EQ(words.back(), -77);
  EXPECT_EQ(std::count(words.begin(), words.end(), -77), 1);  // all others are written
  EXPECT_EQ(inputs.sample_tokens[0], 4);
  EXPECT_EQ(inputs.row_slots[0], 2);
  EXPECT_EQ(inputs.output_indices[0], 7);
  EXPECT_EQ(inputs.scored_tokens[0], 3);
  EXPECT_EQ(inputs.scored_next[0], 5);
  EXPECT_EQ(inputs.scored_top[0], 20);
  EXPECT_THAT(AsList(inputs.pool_items[0]), ElementsAre(0, 3, 4, 0, 0, 3));
}

// A slot has two rows of logits in fp32, counts in 16 bits and a bit for each token.
TEST(StepMemoryTest, GrowsWithSlotsAndVocabulary) {
  ModelConfig config;
  config.hidden_size = 64;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.intermediate_size = 128;
  config.vocab_size = 32000;
  BackendInfo info = Info();
  info.vocab_size = config.vocab_size;
  const auto bytes = [&] {
    return GpuForward::ActivationBytes(config, info) + SlotAdjustments::Bytes(info);
  };
  const int64_t before = bytes();
  info.vocab_size = config.vocab_size += 3200;
  // And the words that barred tokens of one slot may come in.
  EXPECT_EQ(bytes() - before, 5 * 3200 * (4 + 4 + 2) + 5 * 3200 / 8 + 8 * 3200 / 32);
  const int64_t more = bytes();
  ++info.max_sequences;
  EXPECT_GE(bytes() - more, config.vocab_size * (4 + 4 + 2) + 2 * 4 * config.hidden_size +
                                AdjustState::kMaxBiases * 8);
  const int64_t blocks = bytes();
  info.block_size /= 2;  // 16 blocks instead of 8, in the table and in what changes of it
  EXPECT_EQ(bytes() - blocks, int64_t{8} * info.max_sequences * (4 + 12));
}

}  // namespace
}  // namespace ferrite

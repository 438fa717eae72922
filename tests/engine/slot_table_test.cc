#include "engine/slot_table.h"

#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/paged_batch.h"

namespace ferrite {
namespace {

using testing::HasSubstr;

BackendInfo Info() {
  BackendInfo info;
  info.num_blocks = 10;
  info.block_size = 4;
  info.max_sequences = 3;
  info.max_step_tokens = 16;
  info.max_sequence_length = 20;
  info.vocab_size = 50;
  return info;
}

// Two sequences: a prompt of 6 and one decode whose token comes from row 1 of the step before.
class SlotTableTest : public testing::Test {
 protected:
  SlotTableTest() : table_(Info()), paged_(4, {9, 0, 8, 1, 7, 2}) {
    paged_.NextStep();
    paged_.Assign(2, params_);
    paged_.Append(2, std::vector<TokenId>{5}, true);
    EXPECT_TRUE(table_.Apply(paged_.batch()).ok());
    EXPECT_EQ(table_.Check(paged_.batch(), 0), absl::OkStatus());
    paged_.NextStep();
    paged_.Assign(0, params_);
    paged_.Append(0, std::vector<TokenId>{1, 2, 3, 4, 5, 49}, false);
    paged_.Append(2, std::vector<TokenId>{-7}, true, 1, 1);
  }

  absl::Status Check() {
    if (absl::Status status = table_.Apply(paged_.batch()); !status.ok()) {
      return status;
    }
    return table_.Check(paged_.batch(), 2);
  }

  SamplingParams params_;
  SlotTable table_;
  PagedBatch paged_;
};

TEST_F(SlotTableTest, AcceptsAValidBatch) {
  EXPECT_EQ(Check(), absl::OkStatus());
  EXPECT_EQ(table_.blocks_per_slot(), 5);
}

TEST_F(SlotTableTest, AssignmentForgetsTheSlotsOldBlocks) {
  ASSERT_EQ(Check(), absl::OkStatus());
  Batch& batch = paged_.batch();
  batch.block_table_changes.clear();
  EXPECT_THAT(Check().message(), HasSubstr("slot 0 has no block 0 for its 6 tokens"));
}

TEST_F(SlotTableTest, EveryBrokenInvariantIsNamed) {
  const struct {
    std::function<void(Batch&)> spoil;
    const char* message;
  } cases[] = {
      {[](Batch& b) { b.token_ids.pop_back(); }, "7, 6 and 7 entries"},
      {[](Batch& b) { b.slot_mapping.push_back(0); }, "7, 7 and 8 entries"},
      {[](Batch& b) { b.kv_lens.pop_back(); }, "2, 3, 1 and 2 entries"},
      {[](Batch& b) { b.cu_seqlens.clear(); }, "2, 0, 2 and 2 entries"},
      {[](Batch& b) { b.output_indices.clear(); }, "1 and 0 entries"},
      {[](Batch& b) { b.cu_seqlens[2] = 8; }, "from 0 to 8, not from 0 to 7"},
      {[](Batch& b) { b.cu_seqlens[1] = 9; }, "cu_seqlens gives sequence 0 9 tokens"},
      {[](Batch& b) { b.cu_seqlens[1] = 0; }, "cu_seqlens gives sequence 0 0 tokens"},
      {[](Batch& b) { b.seq_slots[1] = SeqSlot{3}; }, "seq_slots[1] is 3 of 3"},
      {[](Batch& b) { b.seq_slots[1] = SeqSlot{0}; }, "slot 0 twice"},
      {[](Batch& b) { b.kv_lens[0] = 21; }, "kv_lens[0] is 21"},
      {[](Batch& b) { b.kv_lens[0] = 5; }, "kv_lens[0] is 5 with 6 new tokens"},
      {[](Batch& b) { b.kv_lens[0] = 12; }, "slot 0 has no block 2"},
      {[](Batch& b) { b.input_rows[1] = 2; }, "input_rows[1] is 2"},
      {[](Batch& b) { b.input_rows[0] = 0; }, "input_rows[0] is 0 for 6 tokens"},
      {[](Batch& b) { b.positions[3] = 2; }, "positions[3] is 2, but kv_lens[0] makes it 3"},
      {[](Batch& b) { b.slot_mapping[5] = 40; }, "slot_mapping[5] is 40"},
      {[](Batch& b) { b.slot_mapping[0] += 1; }, "slot_mapping[0] is"},
      {[](Batch& b) { b.token_ids[5] = 50; }, "token_ids[5] is 50 of 50"},
      {[](Batch& b) { b.token_ids[0] = -1; }, "token_ids[0] is -1 of 50"},
      {[](Batch& b) { b.sample_seqs[0] = 2; }, "sample_seqs[0] is 2 of 2"},
      {[](Batch& b) { b.output_indices[0] = -1; }, "output_indices[0] is -1"},
      {[](Batch& b) { b.slot_assignments[0].slot = SeqSlot{-1}; }, "slot -1 of 3"},
      {[](Batch& b) { b.slot_assignments[0].params = nullptr; }, "without params"},
      {[](Batch& b) { b.block_table_changes[0].block = BlockId{10}; }, "to block 10 (of 10)"},
      {[](Batch& b) { b.block_table_changes[0].index = 5; }, "entry 5 (of 5)"},
      {[](Batch& b) { b.block_table_changes[0].slot = SeqSlot{7}; }, "slot 7 (of 3)"},
  };
  const Batch valid = paged_.batch();
  for (const auto& c : cases) {
    paged_.batch() = valid;
    c.spoil(paged_.batch());
    const absl::Status status = Check();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << c.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
    EXPECT_THAT(std::string(status.message()), HasSubstr("step 2: "));
  }
}

class SlotTablePoolingTest : public SlotTableTest {
 protected:
  // The prompt is pooled, and two of its tokens are scored: one alone, one with many beside it.
  SlotTablePoolingTest() {
    Batch& batch = paged_.batch();
    batch.slot_assignments[0].pooling = Pooling::kMean;
    batch.pooled_seqs = {0};
    batch.scored = {{.token = 1, .next = 3, .num_top = 0}, {.token = 3, .next = 49, .num_top = 20}};
  }
};

TEST_F(SlotTablePoolingTest, KeepsASlotsPoolingUntilItIsReassigned) {
  EXPECT_EQ(Check(), absl::OkStatus());
  EXPECT_EQ(table_.pooling(SeqSlot{0}), Pooling::kMean);
  EXPECT_EQ(table_.pooling(SeqSlot{2}), Pooling::kNone);
  EXPECT_EQ(Check(), absl::OkStatus());  // what one check has seen is nothing to the next
  paged_.NextStep();
  paged_.Assign(0, params_);
  EXPECT_EQ(table_.Apply(paged_.batch()), absl::OkStatus());
  EXPECT_EQ(table_.pooling(SeqSlot{0}), Pooling::kNone);
}

TEST_F(SlotTablePoolingTest, EveryBrokenInvariantIsNamed) {
  const struct {
    std::function<void(Batch&)> spoil;
    const char* message;
  } cases[] = {
      {[](Batch& b) { b.scored[0].token = -1; }, "scored[0] is token -1 of 7"},
      {[](Batch& b) { b.scored[1].token = 1; }, "scored[1] is token 1 of 7, after 1"},
      {[](Batch& b) { b.scored[1].token = 7; }, "scored[1] is token 7 of 7"},
      {[](Batch& b) { b.scored[0].next = 50; }, "scored[0] has next token 50 of 50"},
      {[](Batch& b) { b.scored[1].next = -1; }, "scored[1] has next token -1 of 50"},
      {[](Batch& b) { b.scored[1].num_top = 21; }, "asks for 21 likeliest; the most are 20"},
      {[](Batch& b) { b.scored[0].num_top = -1; }, "asks for -1 likeliest"},
      {[](Batch& b) { b.pooled_seqs[0] = 2; }, "pooled_seqs[0] is 2 of 2"},
      {[](Batch& b) { b.pooled_seqs[0] = -1; }, "pooled_seqs[0] is -1 of 2"},
      {[](Batch& b) { b.pooled_seqs[0] = 1; }, "pooled_seqs[0] is in slot 2, which has no pooling"},
      {[](Batch& b) { b.sample_seqs[0] = 0; }, "pooled_seqs[0] is 0, which is sampled or pooled"},
      {[](Batch& b) { b.pooled_seqs.push_back(0); }, "pooled_seqs[1] is 0, which is sampled or"},
  };
  const Batch valid = paged_.batch();
  for (const auto& c : cases) {
    paged_.batch() = valid;
    c.spoil(paged_.batch());
    const absl::Status status = Check();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << c.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
}

TEST_F(SlotTableTest, RefusesMoreTokensThanAStepHolds) {
  Batch& batch = paged_.batch();
  for (int i = 0; i < 10; ++i) {
    batch.token_ids.push_back(0);
    batch.positions.push_back(0);
    batch.slot_mapping.push_back(0);
  }
  EXPECT_THAT(Check().message(), HasSubstr("17 tokens, 2 sequences, 1 samples; the most are 16"));
}

}  // namespace
}  // namespace ferrite

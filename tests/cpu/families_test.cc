// The CPU backend against transformers; the tests are tests/testing/families_suite.cc.
#include <memory>
#include <utility>
#include <vector>

#include "cpu/forward.h"
#include "cpu/isa.h"
#include "engine/slot_table.h"
#include "gtest/gtest.h"
#include "tests/testing/families_suite.h"
#include "tests/testing/paged_batch.h"

namespace ferrite {
namespace {

// A forward pass with the block tables it needs, as the backend has them.
class CpuFamilyModel : public FamilyModel {
 public:
  CpuFamilyModel(const ModelConfig& config, const Checkpoint& checkpoint, ComputeType type,
                 bool deterministic)
      : vocab_(static_cast<size_t>(config.vocab_size)), pool_(2), slots_(Info(config)) {
    auto forward = ForwardPass::Create(config, checkpoint,
                                       {.compute_type = type,
                                        .num_blocks = kNumBlocks,
                                        .block_size = kBlockSize,
                                        .max_sequences = kMaxSequences,
                                        .max_step_tokens = kMaxStepTokens,
                                        .max_sequence_length = config.max_position_embeddings,
                                        .deterministic = deterministic},
                                       &pool_);
    EXPECT_TRUE(forward.ok()) << forward.status();
    forward_ = std::move(forward).value();
    paged_.NextStep();
  }

  void Assign(int32_t slot) override { paged_.Assign(slot, params_); }
  void Append(int32_t slot, std::span<const TokenId> tokens) override {
    paged_.Append(slot, tokens, /*sample=*/true);
  }

  std::vector<std::vector<float>> Run() override {
    const Batch& batch = paged_.batch();
    EXPECT_EQ(slots_.Apply(batch), absl::OkStatus());
    EXPECT_EQ(slots_.Check(batch, 0), absl::OkStatus());
    const auto logits =
        forward_->Run(batch, batch.token_ids, slots_.block_tables(), slots_.blocks_per_slot());
    EXPECT_TRUE(logits.ok()) << logits.status();
    std::vector<std::vector<float>> rows;
    for (size_t r = 0; r < static_cast<size_t>(batch.num_samples()); ++r) {
      const auto row = logits->subspan(r * vocab_, vocab_);
      rows.emplace_back(row.begin(), row.end());
    }
    paged_.NextStep();
    return rows;
  }

 private:
  static BackendInfo Info(const ModelConfig& config) {
    BackendInfo info;
    info.num_blocks = kNumBlocks;
    info.block_size = kBlockSize;
    info.max_sequences = kMaxSequences;
    info.max_step_tokens = kMaxStepTokens;
    info.max_sequence_length = config.max_position_embeddings;
    info.vocab_size = config.vocab_size;
    return info;
  }

  size_t vocab_;
  SamplingParams params_;
  ThreadPool pool_;
  SlotTable slots_;
  PagedBatch paged_{kBlockSize, ScatteredBlocks(kNumBlocks)};
  std::unique_ptr<ForwardPass> forward_;
};

}  // namespace

std::vector<FamilyType> FamilyTypes() {
  std::vector<FamilyType> types = {
      {.name = "fp32", .tolerance = 1e-5, .exact = true, .deterministic = true},
      {.name = "bf16", .tolerance = 2e-2, .deterministic = true}};
  if (CpuMultipliesBf16()) {  // where the deterministic way is another one
    types.push_back({.name = "bf16_by_onednn", .tolerance = 2e-2});
  }
  return types;
}

bool FamilyDeviceIsThere() { return true; }

std::unique_ptr<FamilyModel> CreateFamilyModel(const ModelConfig& config,
                                               const Checkpoint& checkpoint,
                                               const FamilyType& type) {
  return std::make_unique<CpuFamilyModel>(
      config, checkpoint, type.name == "fp32" ? ComputeType::kFp32 : ComputeType::kBf16,
      type.deterministic);
}

}  // namespace ferrite

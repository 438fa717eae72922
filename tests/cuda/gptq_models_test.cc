// Models quantised by GPTQ: the GPU's logits against those of the CPU in fp32, of the same weights,
// by every way that products can take.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/forward.h"
#include "cpu/thread_pool.h"
#include "cuda/cuda_backend.h"
#include "engine/slot_table.h"
#include "tests/cuda/gpu_test.h"
#include "tests/engine/model/status_matchers.h"
#include "tests/testing/gptq_fixtures.h"
#include "tests/testing/paged_batch.h"

namespace ferrite {
namespace {

using test::IsOk;

constexpr int32_t kBlockSize = 16;
constexpr int32_t kNumBlocks = 128;
constexpr int32_t kMaxSequences = 12;
constexpr int32_t kMaxStepTokens = 400;
constexpr int32_t kMaxLength = 128;

// One batch after the other through both backends.
class Pair {
 public:
  Pair(const std::string& folder, const std::string& type, bool fused_int4, bool graphs)
      : config_(LoadModelConfig(folder).value()),
        checkpoint_(Checkpoint::Open(folder).value()),
        tolerance_(type == "fp16" ? 1e-2 : 2e-2) {
    auto gpu = CudaBackend::Create(config_, *checkpoint_,
                                   {.compute_type = type,
                                    .num_blocks = kNumBlocks,
                                    .block_size = kBlockSize,
                                    .max_sequences = kMaxSequences,
                                    .max_step_tokens = kMaxStepTokens,
                                    .max_sequence_length = kMaxLength,
                                    .graphs = graphs,
                                    .progress = {},
                                    .fused_int4 = fused_int4});
    EXPECT_THAT(gpu, IsOk());
    gpu_ = *std::move(gpu);
    slots_.emplace(gpu_->info());
    auto cpu = ForwardPass::Create(config_, *checkpoint_,
                                   {.compute_type = ComputeType::kFp32,
                                    .num_blocks = kNumBlocks,
                                    .block_size = kBlockSize,
                                    .max_sequences = kMaxSequences,
                                    .max_step_tokens = kMaxStepTokens,
                                    .max_sequence_length = kMaxLength},
                                   &pool_);
    EXPECT_THAT(cpu, IsOk());
    cpu_ = *std::move(cpu);
    greedy_.temperature = 0;
  }

  // A step in which each of the sequences in slots [first, last) gets `tokens` more.
  void Step(int32_t first, int32_t last, int32_t tokens) {
    SCOPED_TRACE((last - first) * tokens);
    paged_.NextStep();
    for (int32_t slot = first; slot < last; ++slot) {
      if (begun_.insert(slot).second) {
        paged_.Assign(slot, greedy_);
      }
      std::vector<TokenId> text;
      for (int32_t i = 0; i < tokens; ++i) {
        text.push_back(next_++ * 37 % config_.vocab_size);
      }
      paged_.Append(slot, text, /*sample=*/true);
    }
    const Batch& batch = paged_.batch();
    ASSERT_THAT(gpu_->Launch(batch), IsOk());
    StepResult result;
    ASSERT_THAT(gpu_->Wait(&result), IsOk());
    const auto actual = gpu_->ReadLogits();
    ASSERT_THAT(actual, IsOk());
    ASSERT_THAT(slots_->Apply(batch), IsOk());
    const auto logits =
        cpu_->Run(batch, batch.token_ids, slots_->block_tables(), slots_->blocks_per_slot());
    ASSERT_THAT(logits, IsOk());
    const auto vocab = static_cast<size_t>(config_.vocab_size);
    for (size_t row = 0; row < static_cast<size_t>(last - first); ++row) {
      const auto expected = logits->subspan(row * vocab, vocab);
      const double error =
          test::RelativeError(std::span(*actual).subspan(row * vocab, vocab),
                              std::vector<double>(expected.begin(), expected.end()));
      EXPECT_LE(error, tolerance_) << "row " << row;
      worst_ = std::max(worst_, error);
    }
  }

  const CudaBackend& gpu() const { return *gpu_; }
  double worst() const { return worst_; }

 private:
  static std::vector<int32_t> Blocks() {
    std::vector<int32_t> blocks(kNumBlocks);
    std::iota(blocks.begin(), blocks.end(), 0);
    return blocks;
  }

  ModelConfig config_;
  std::unique_ptr<Checkpoint> checkpoint_;
  double tolerance_;
  std::unique_ptr<CudaBackend> gpu_;
  ThreadPool pool_{2};
  std::optional<SlotTable> slots_;
  std::unique_ptr<ForwardPass> cpu_;
  SamplingParams greedy_;
  PagedBatch paged_{kBlockSize, Blocks()};
  std::set<int32_t> begun_;  // slots
  TokenId next_ = 1;
  double worst_ = 0;
};

struct Model {
  size_t folder;  // of GptqModelFolders
  std::string name;
  int32_t quantized;              // linears
  std::vector<size_t> qkv_parts;  // by layer, where kernels of ours take 4 bits
};

const Model kModels[] = {
    {0, "SymG32", 14, {1, 1}}, {1, "AsymG64ActApart", 14, {3, 3}}, {2, "MixedV2", 12, {3, 1}}};

using Case = std::tuple<Model, std::string, bool, bool>;

class GptqModelsTest : public test::GpuTest, public testing::WithParamInterface<Case> {};

std::string CaseName(const testing::TestParamInfo<Case>& param_info) {
  const auto& [model, type, fused, graphs] = param_info.param;
  return model.name + "_" + type + (fused ? "_Fused" : "_Dequantized") +
         (graphs ? "_Graphs" : "_Eager");
}

INSTANTIATE_TEST_SUITE_P(Models, GptqModelsTest,
                         testing::Combine(testing::ValuesIn(kModels),
                                          testing::Values("fp16", "bf16"), testing::Bool(),
                                          testing::Bool()),
                         CaseName);

TEST_P(GptqModelsTest, LogitsAreThoseOfTheCpu) {
  const auto& [model, type, fused, graphs] = GetParam();
  Pair pair(test::GptqModelFolders()[model.folder], type, fused, graphs);
  const TransformerGpuWeights& weights = pair.gpu().weights();
  EXPECT_EQ(weights.int4.fused, fused ? model.quantized : 0);
  EXPECT_EQ(weights.int4.dequantized, fused ? 0 : model.quantized);
  EXPECT_NE(pair.gpu().info().remarks, "");
  for (size_t layer = 0; fused && layer < 2; ++layer) {
    EXPECT_EQ(weights.layers[layer].qkv.parts().size(), model.qkv_parts[layer]);
    EXPECT_EQ(weights.layers[layer].gate_up.parts().size(), model.folder == 1 ? 2u : 1u);
  }
  pair.Step(0, 1, 1);
  pair.Step(0, 1, 1);
  pair.Step(0, 1, 7);
  pair.Step(0, 1, 64);
  pair.Step(1, 5, 90);  // more rows than Int4Matmul takes
  pair.Step(5, 12, 3);
  pair.Step(0, 12, 1);
  pair.Step(0, 8, 1);
  pair.Step(4, 7, 1);
  RecordProperty("worst_relative_error", std::to_string(pair.worst()));
}

}  // namespace
}  // namespace ferrite

// The CUDA backend against transformers; the tests are tests/testing/families_suite.cc. Steps in
// which every sequence has one token are graphs, others are not.
#include <memory>
#include <utility>
#include <vector>

#include "cuda/cuda_backend.h"
#include "gtest/gtest.h"
#include "tests/cuda/gpu_test.h"
#include "tests/testing/families_suite.h"
#include "tests/testing/paged_batch.h"

namespace ferrite {
namespace {

class CudaFamilyModel : public FamilyModel {
 public:
  CudaFamilyModel(const ModelConfig& config, const Checkpoint& checkpoint, const FamilyType& type)
      : vocab_(static_cast<size_t>(config.vocab_size)) {
    CudaBackendOptions options;
    options.compute_type = type.name.substr(0, 4);
    options.deterministic = type.deterministic;
    options.num_blocks = kNumBlocks;
    options.block_size = kBlockSize;
    options.max_sequences = kMaxSequences;
    options.max_step_tokens = kMaxStepTokens;
    auto backend = CudaBackend::Create(config, checkpoint, options);
    EXPECT_TRUE(backend.ok()) << backend.status();
    backend_ = std::move(backend).value();
    params_.temperature = 0;
    paged_.NextStep();
  }

  void Assign(int32_t slot) override { paged_.Assign(slot, params_); }
  void Append(int32_t slot, std::span<const TokenId> tokens) override {
    paged_.Append(slot, tokens, /*sample=*/true);
  }

  // What is sampled must be what the logits say, too.
  std::vector<std::vector<float>> Run() override {
    EXPECT_EQ(backend_->Launch(paged_.batch()), absl::OkStatus());
    StepResult result;
    EXPECT_EQ(backend_->Wait(&result), absl::OkStatus());
    const auto logits = backend_->ReadLogits();
    EXPECT_TRUE(logits.ok()) << logits.status();
    std::vector<std::vector<float>> rows;
    for (size_t r = 0; r * vocab_ < logits->size(); ++r) {
      const auto begin = logits->begin() + static_cast<ptrdiff_t>(r * vocab_);
      rows.emplace_back(begin, begin + static_cast<ptrdiff_t>(vocab_));
      EXPECT_EQ(result.token_ids[r],
                std::max_element(rows[r].begin(), rows[r].end()) - rows[r].begin());
    }
    paged_.NextStep();
    return rows;
  }

 private:
  size_t vocab_;
  SamplingParams params_;
  PagedBatch paged_{kBlockSize, ScatteredBlocks(kNumBlocks)};
  std::unique_ptr<CudaBackend> backend_;
};

}  // namespace

std::vector<FamilyType> FamilyTypes() {
  return {{.name = "fp16", .tolerance = 1e-2},
          {.name = "bf16", .tolerance = 2e-2},
          {.name = "fp16_deterministic", .tolerance = 1e-2, .deterministic = true},
          {.name = "bf16_deterministic", .tolerance = 2e-2, .deterministic = true}};
}

bool FamilyDeviceIsThere() { return test::HasGpu(); }

std::unique_ptr<FamilyModel> CreateFamilyModel(const ModelConfig& config,
                                               const Checkpoint& checkpoint,
                                               const FamilyType& type) {
  return std::make_unique<CudaFamilyModel>(config, checkpoint, type);
}

}  // namespace ferrite

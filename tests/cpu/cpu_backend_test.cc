#include "cpu/cpu_backend.h"

#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "cpu/aligned_buffer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/paged_batch.h"

namespace ferrite {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<int32_t> Blocks(int32_t count) {
  std::vector<int32_t> blocks(count);
  std::iota(blocks.begin(), blocks.end(), 0);
  return blocks;
}

CpuBackendOptions SmallOptions() {
  return {.compute_type = "fp32",
          .num_threads = 2,
          .num_blocks = 32,
          .block_size = 4,
          .max_sequences = 4,
          .max_step_tokens = 64};
}

class CpuBackendTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<CpuBackend>> Create(const CpuBackendOptions& options) {
    return CpuBackend::Create(tiny_.config, *tiny_.checkpoint, options);
  }

  TinyModel tiny_ = LoadTinyModel("tiny_untied_f32");
};

TEST_F(CpuBackendTest, SaysWhatItIs) {
  const auto backend = Create(SmallOptions());
  ASSERT_TRUE(backend.ok()) << backend.status();
  const BackendInfo& info = (*backend)->info();
  EXPECT_EQ(info.device, "cpu");
  EXPECT_EQ(info.compute_type, "fp32");
  EXPECT_EQ(info.num_blocks, 32);
  EXPECT_EQ(info.block_size, 4);
  EXPECT_EQ(info.max_sequences, 4);
  EXPECT_EQ(info.max_step_tokens, 64);
  EXPECT_EQ(info.max_sequence_length, 64);  // the model's
  EXPECT_EQ(info.vocab_size, 97);
  EXPECT_EQ(info.pipeline_depth, 1);
  // Embedding, two layers (qkv, o, gate, up, down, norms), final norm, lm_head.
  EXPECT_EQ(info.num_parameters, 2 * 97 * 48 + 48 + 2 * (48 * (80 + 48 + 3 * 100) + 2 * 48));
  // Keys in groups of 16 tokens, values padded to 16 lanes.
  EXPECT_EQ((*backend)->kv_pool_bytes(), 2 * 32 * 2 * (16 * 8 + 4 * 16) * 4);
}

TEST_F(CpuBackendTest, TiedEmbeddingCountsOnce) {
  tiny_ = LoadTinyModel("tiny_tied_bf16");
  const auto backend = Create(SmallOptions());
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->info().num_parameters,
            97 * 48 + 48 + 2 * (48 * (80 + 48 + 3 * 100) + 2 * 48));
}

TEST_F(CpuBackendTest, SampledTokensFeedTheNextStepByRow) {
  const auto backend = Create(SmallOptions()).value();
  const SamplingParams greedy = {.temperature = 0};
  const std::vector<TokenId> dummy = {-1};
  StepResult result;

  // By hand: what the host would feed back.
  std::vector<TokenId> expected[2];
  for (int p = 0; p < 2; ++p) {
    PagedBatch paged(4, Blocks(16));
    std::vector<TokenId> input = tiny_.prompts[p].tokens;
    for (int i = 0; i < 5; ++i) {
      paged.NextStep();
      if (i == 0) {
        paged.Assign(0, greedy);
      }
      paged.Append(0, input, true, i);
      ASSERT_EQ(backend->Launch(paged.batch()), absl::OkStatus());
      ASSERT_EQ(backend->Wait(&result), absl::OkStatus());
      ASSERT_THAT(result.row_offsets, ElementsAre(0, 1));
      input = result.token_ids;
      expected[p].push_back(input[0]);
    }
  }

  PagedBatch paged(4, Blocks(32));
  std::vector<TokenId> actual[2];
  for (int i = 0; i < 5; ++i) {
    paged.NextStep();
    // The order of the sequences flips every step, so the rows cross over.
    for (const int p : {i % 2, 1 - i % 2}) {
      if (i == 0) {
        paged.Assign(p, greedy);
        paged.Append(p, tiny_.prompts[p].tokens, true);
      } else {
        paged.Append(p, dummy, true, i, (i - 1) % 2 == p ? 0 : 1);
      }
    }
    ASSERT_EQ(backend->Launch(paged.batch()), absl::OkStatus());
    ASSERT_EQ(backend->Wait(&result), absl::OkStatus());
    EXPECT_EQ(result.step, static_cast<uint64_t>(i + 1));
    ASSERT_THAT(result.row_offsets, ElementsAre(0, 1, 2));
    actual[i % 2].push_back(result.token_ids[0]);
    actual[1 - i % 2].push_back(result.token_ids[1]);
  }
  EXPECT_EQ(actual[0], expected[0]);
  EXPECT_EQ(actual[1], expected[1]);
}

TEST_F(CpuBackendTest, EachSlotHasItsOwnSamplingParameters) {
  const auto backend = Create(SmallOptions()).value();
  const SamplingParams greedy = {.temperature = 0};
  SamplingParams barred = {.temperature = 0, .min_new_tokens = 1};
  StepResult result;
  PagedBatch paged(4, Blocks(32));
  paged.NextStep();
  paged.Assign(0, greedy);
  paged.Append(0, tiny_.prompts[1].tokens, true);
  ASSERT_EQ(backend->Launch(paged.batch()), absl::OkStatus());
  ASSERT_EQ(backend->Wait(&result), absl::OkStatus());
  const TokenId likeliest = result.token_ids[0];
  barred.end_token_ids = {likeliest};

  paged.NextStep();
  paged.Assign(1, barred);
  paged.Assign(2, greedy);
  paged.Append(1, tiny_.prompts[1].tokens, true);
  paged.Append(2, tiny_.prompts[1].tokens, true);
  barred.end_token_ids.clear();  // Launch must have taken a copy by the time it returns
  barred.end_token_ids = {likeliest};
  ASSERT_EQ(backend->Launch(paged.batch()), absl::OkStatus());
  ASSERT_EQ(backend->Wait(&result), absl::OkStatus());
  EXPECT_NE(result.token_ids[0], likeliest);
  EXPECT_EQ(result.token_ids[1], likeliest);
}

TEST_F(CpuBackendTest, LaunchAndWaitKeepTheirOrder) {
  const auto backend = Create(SmallOptions()).value();
  StepResult result;
  EXPECT_EQ(backend->Wait(&result).code(), absl::StatusCode::kFailedPrecondition);
  Batch empty;
  empty.Clear();
  empty.step = 1;
  ASSERT_EQ(backend->Launch(empty), absl::OkStatus());
  EXPECT_EQ(backend->Launch(empty).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_EQ(backend->Wait(&result), absl::OkStatus());
  EXPECT_THAT(result.row_offsets, ElementsAre(0));
  EXPECT_TRUE(result.token_ids.empty());
}

TEST_F(CpuBackendTest, ABrokenBatchIsAnInternalErrorAndNoCrash) {
  const auto backend = Create(SmallOptions()).value();
  const SamplingParams params;
  PagedBatch paged(4, Blocks(32));
  paged.NextStep();
  paged.Assign(0, params);
  paged.Append(0, std::vector<TokenId>{1, 2, 97}, true);
  const absl::Status status = backend->Launch(paged.batch());
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("token_ids[2] is 97 of 97"));
}

TEST_F(CpuBackendTest, RunsOnAThreadThatDidNotCreateIt) {
  auto backend = Create(SmallOptions()).value();
  const SamplingParams greedy = {.temperature = 0};
  std::vector<TokenId> tokens;
  for (int i = 0; i < 2; ++i) {
    std::thread([&] {
      PagedBatch paged(4, Blocks(32));
      paged.NextStep();
      paged.Assign(0, greedy);
      paged.Append(0, tiny_.prompts[2].tokens, true);
      StepResult result;
      ASSERT_EQ(backend->Launch(paged.batch()), absl::OkStatus());
      ASSERT_EQ(backend->Wait(&result), absl::OkStatus());
      tokens.push_back(result.token_ids[0]);
    }).join();
  }
  ASSERT_EQ(tokens.size(), 2u);
  EXPECT_EQ(tokens[0], tokens[1]);
}

TEST_F(CpuBackendTest, OptionsOutOfRangeAreNamed) {
  const struct {
    std::function<void(CpuBackendOptions&)> spoil;
    absl::StatusCode code;
    const char* message;
  } cases[] = {
      {[](auto& o) { o.compute_type = "fp8"; }, absl::StatusCode::kInvalidArgument, "\"fp8\""},
      {[](auto& o) { o.num_threads = -1; }, absl::StatusCode::kInvalidArgument,
       "num_threads is -1"},
      {[](auto& o) { o.num_blocks = -1; }, absl::StatusCode::kInvalidArgument, "num_blocks is -1"},
      {[](auto& o) { o.block_size = 0; }, absl::StatusCode::kInvalidArgument, "block_size is 0"},
      {[](auto& o) { o.max_sequences = 0; }, absl::StatusCode::kInvalidArgument, "max_sequences"},
      {[](auto& o) { o.max_step_tokens = 0; }, absl::StatusCode::kInvalidArgument,
       "max_step_tokens"},
      {[](auto& o) { o.max_sequence_length = 65; }, absl::StatusCode::kInvalidArgument,
       "max_sequence_length is 65; the model's is 64"},
      {[](auto& o) { o.num_blocks = 2000000000; }, absl::StatusCode::kResourceExhausted,
       "num_blocks = 2000000000"},
      {[](auto& o) { o.num_blocks = 2000000000, o.block_size = 1; },
       absl::StatusCode::kResourceExhausted, "KV pool of num_blocks = 2000000000"},
      {[](auto& o) { o.num_threads = 2000000000; }, absl::StatusCode::kInvalidArgument,
       "num_threads is 2000000000"},
      {[](auto& o) { o.max_step_tokens = 2000000000; }, absl::StatusCode::kInvalidArgument,
       "max_step_tokens is 2000000000"},
      {[](auto& o) { o.max_sequences = 2000000000; }, absl::StatusCode::kInvalidArgument,
       "max_sequences is 2000000000"},
      {[](auto& o) { o.num_blocks = 0, o.kv_pool_bytes = 3071; },
       absl::StatusCode::kResourceExhausted, "has 3071 bytes; one block of 4 tokens takes 3072"},
  };
  for (const auto& c : cases) {
    CpuBackendOptions options = SmallOptions();
    c.spoil(options);
    const absl::Status status = Create(options).status();
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
}

TEST_F(CpuBackendTest, ThePoolFillsItsBytesButNoMoreThanCanBeUsed) {
  CpuBackendOptions options = SmallOptions();
  options.num_blocks = 0;
  options.kv_pool_bytes = 10 * 3072 + 3071;
  const auto ten = Create(options).value();
  EXPECT_EQ(ten->info().num_blocks, 10);
  EXPECT_EQ(ten->kv_pool_bytes(), 10 * 3072);
  options.kv_pool_bytes = 1 << 30;
  EXPECT_EQ(Create(options).value()->info().num_blocks, 4 * 64 / 4);
}

TEST(AlignedBufferTest, MoreThanTheMachineHasIsResourceExhausted) {
  for (const int64_t count : {int64_t{-1}, int64_t{1} << 50, INT64_MAX}) {
    const absl::Status status = AlignedBuffer<float>::Create(count, "a test").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << count;
    EXPECT_THAT(std::string(status.message()), HasSubstr("a test needs"));
  }
  EXPECT_TRUE(AlignedBuffer<float>::Create(0, "nothing").ok());
}

TEST_F(CpuBackendTest, ACheckpointThatDoesNotFitTheConfigIsRefused) {
  const ModelConfig config = tiny_.config;
  tiny_.config.num_layers = 3;
  EXPECT_THAT(std::string(Create(SmallOptions()).status().message()),
              HasSubstr("model.layers.2.input_layernorm.weight"));
  tiny_.config = config;
  tiny_.config.num_layers = 1;
  const absl::Status extra = Create(SmallOptions()).status();
  EXPECT_EQ(extra.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(extra.message()), HasSubstr("model.layers.1."));
  tiny_.config = config;
  tiny_.config.intermediate_size = 99;
  const absl::Status shape = Create(SmallOptions()).status();
  EXPECT_EQ(shape.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(shape.message()), HasSubstr("mlp.gate_proj.weight"));
  // A tied model may carry its lm_head all the same.
  tiny_.config = config;
  tiny_.config.tie_word_embeddings = true;
  EXPECT_TRUE(Create(SmallOptions()).ok());
}

TEST_F(CpuBackendTest, Bf16IsOfferedOrRefusedWithItsReason) {
  tiny_ = LoadTinyModel("tiny_tied_bf16");
  CpuBackendOptions options = SmallOptions();
  options.compute_type = "bf16";
  const auto backend = Create(options);
  // ctest runs this a second time with oneDNN held to AVX2, which has no bf16 products.
  const char* isa = std::getenv("ONEDNN_MAX_CPU_ISA");
  if (isa != nullptr && std::string(isa) == "AVX2") {
    EXPECT_EQ(backend.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(backend.status().message()), HasSubstr("bf16"));
  } else if (backend.ok()) {
    EXPECT_EQ((*backend)->info().compute_type, "bf16");
    EXPECT_EQ((*backend)->kv_pool_bytes(), 2 * 32 * 2 * (16 * 8 + 4 * 16) * 2);
  } else {
    EXPECT_EQ(backend.status().code(), absl::StatusCode::kFailedPrecondition);
  }
}

TEST_F(CpuBackendTest, AutoIsFp32ForA32BitCheckpoint) {
  CpuBackendOptions options = SmallOptions();
  options.compute_type = "auto";
  EXPECT_EQ(Create(options).value()->info().compute_type, "fp32");
}

// The real model against token ids computed in float64 by the fixture script, which the reference
// program's texts confirm; one prompt after the other and both at once.
TEST(StoriesTest, GreedyTokensMatchTheReference) {
  const std::string folder = FERRITE_SOURCE_DIR "/models/stories260k";
  const ModelConfig config = LoadModelConfig(folder).value();
  const auto checkpoint = Checkpoint::Open(folder).value();
  std::ifstream file(FERRITE_SOURCE_DIR "/tests/fixtures/cpu/stories260k_greedy.json");
  const nlohmann::json cases = nlohmann::json::parse(file);
  ASSERT_EQ(cases.size(), 2u);
  const auto backend =
      CpuBackend::Create(
          config, *checkpoint,
          {.num_blocks = 64, .block_size = 16, .max_sequences = 2, .max_step_tokens = 128})
          .value();
  const SamplingParams greedy = {.temperature = 0};
  PagedBatch paged(16, Blocks(64));
  std::vector<TokenId> generated[2];
  StepResult result;
  for (int32_t i = 0; i < 200; ++i) {
    paged.NextStep();
    std::vector<int32_t> sequences;
    for (int32_t p = 0; p < 2; ++p) {
      const auto prompt = cases[p]["prompt_ids"].get<std::vector<TokenId>>();
      if (i == 0) {
        paged.Assign(p, greedy);
        paged.Append(p, prompt, true);
        sequences.push_back(p);
      } else if (generated[p].size() < cases[p]["generated_ids"].size()) {
        paged.Append(p, std::vector<TokenId>{generated[p].back()}, true, i);
        sequences.push_back(p);
      }
    }
    ASSERT_EQ(backend->Launch(paged.batch()), absl::OkStatus());
    ASSERT_EQ(backend->Wait(&result), absl::OkStatus());
    for (size_t row = 0; row < sequences.size(); ++row) {
      generated[sequences[row]].push_back(result.token_ids[row]);
    }
  }
  for (int p = 0; p < 2; ++p) {
    EXPECT_EQ(generated[p], cases[p]["generated_ids"].get<std::vector<TokenId>>());
  }
  EXPECT_EQ(generated[0].size(), 200u);
  EXPECT_EQ(generated[1].size(), 117u);
}

}  // namespace
}  // namespace ferrite

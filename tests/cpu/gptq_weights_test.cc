// GPTQ linears and models on the CPU, against references that numpy made (tests/fixtures/gptq).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "cpu/forward.h"
#include "cpu/matmul_engine.h"
#include "cpu/simd_ops.h"
#include "engine/slot_table.h"
#include "tests/engine/model/status_matchers.h"
#include "tests/testing/gptq_fixtures.h"
#include "tests/testing/paged_batch.h"
#include "tests/testing/safetensors_writer.h"

namespace ferrite {
namespace {

using test::GptqFixture;
using test::IsOk;

TEST(GptqWeightsTest, EveryVariantDequantizesBitForBit) {
  for (const GptqFixture& fixture : test::LoadGptqFixtures()) {
    SCOPED_TRACE(fixture.file);
    std::vector<float> weights(static_cast<size_t>(fixture.outputs * fixture.inputs));
    DequantizeRows(fixture.tensors, 0, fixture.outputs, weights.data());
    const std::vector<int64_t> shape = {fixture.outputs, fixture.inputs};
    EXPECT_TRUE(test::F16Tensor("", shape, weights).data == fixture.Bytes("expected.fp16"));
    EXPECT_TRUE(test::BF16Tensor("", shape, weights).data == fixture.Bytes("expected.bf16"));
  }
}

// x W^T + b of one to 512 rows, which repeat those of the fixture.
void CheckProduct(const GptqFixture& fixture, ComputeType type, double tolerance) {
  SCOPED_TRACE(fixture.file);
  const Checkpoint* const checkpoint = fixture.checkpoint.get();
  const LinearTensors parts[] = {
      {.weight = nullptr, .gptq = fixture.tensors, .bias = checkpoint->Find("bias")}};
  ThreadPool pool(2);
  const auto engine = MatmulEngine::Create(type, /*deterministic=*/false, &pool);
  ASSERT_THAT(engine, IsOk());
  const auto packed = (*engine)->Pack(parts);
  ASSERT_THAT(packed, IsOk());
  const auto inputs = static_cast<size_t>(fixture.inputs);
  const auto outputs = static_cast<size_t>(fixture.outputs);
  std::vector<float> x(3 * inputs);
  ConvertToFloat(*checkpoint->Find("x"), 0, x);
  std::vector<double> expected(3 * outputs);
  std::memcpy(expected.data(), checkpoint->Find("y")->data.data(),
              expected.size() * sizeof(double));
  std::vector<float> bias(outputs, 0.0f);
  if (parts[0].bias != nullptr) {
    ConvertToFloat(*parts[0].bias, 0, bias);
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    expected[i] += bias[i % outputs];
  }
  for (const int32_t rows : {1, 3, 17, 512}) {
    const size_t padded = static_cast<size_t>(rows) + MatmulEngine::kRowPadding;
    std::vector<float> wide(padded * inputs, 0.0f);
    for (size_t i = 0; i < static_cast<size_t>(rows) * inputs; ++i) {
      wide[i] = x[i % x.size()];
    }
    std::vector<uint16_t> narrow(wide.size());
    for (size_t i = 0; i < wide.size(); ++i) {
      narrow[i] = FloatToBf16(wide[i]);
    }
    const bool takes_bf16 = (*engine)->input_type() == ComputeType::kBf16;
    std::vector<float> y(static_cast<size_t>(rows) * outputs);
    ASSERT_THAT((*packed)->Run(takes_bf16 ? static_cast<const void*>(narrow.data()) : wide.data(),
                               rows, y.data(), CpuLinear::Output::kAssign),
                IsOk());
    for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
      ASSERT_LE(RelativeError(std::span(y).subspan(row * outputs, outputs),
                              std::span(expected).subspan(row % 3 * outputs, outputs)),
                tolerance)
          << "row " << row << " of " << rows;
    }
  }
}

TEST(GptqWeightsTest, ProductsMatchDouble) {
  for (const GptqFixture& fixture : test::LoadGptqFixtures()) {
    CheckProduct(fixture, ComputeType::kFp32, 1e-5);
  }
}

TEST(GptqWeightsTest, ProductsOfRoundedWeightsMatchDouble) {
  for (const GptqFixture& fixture : test::LoadGptqFixtures()) {
    CheckProduct(fixture, ComputeType::kBf16, 1e-2);  // weights and maybe inputs have 8 bits
  }
}

// Logits at every position of a prompt.
std::vector<float> Logits(const std::string& folder, bool* quantized) {
  const ModelConfig config = LoadModelConfig(folder).value();
  const auto checkpoint = Checkpoint::Open(folder).value();
  *quantized = IsQuantized(ResolveTensors(config, *checkpoint).value());
  ThreadPool pool(2);
  BackendInfo info;
  info.num_blocks = 8;
  info.block_size = 16;
  info.max_sequences = 24;
  info.max_step_tokens = 512;
  info.max_sequence_length = 64;
  info.vocab_size = config.vocab_size;
  const auto forward = ForwardPass::Create(config, *checkpoint,
                                           {.compute_type = ComputeType::kFp32,
                                            .num_blocks = info.num_blocks,
                                            .block_size = info.block_size,
                                            .max_sequences = info.max_sequences,
                                            .max_step_tokens = info.max_step_tokens,
                                            .max_sequence_length = info.max_sequence_length},
                                           &pool);
  EXPECT_THAT(forward, IsOk());
  SlotTable slots(info);
  PagedBatch paged(info.block_size, {0, 1, 2, 3, 4, 5, 6, 7});
  const SamplingParams params;
  std::vector<float> logits;
  for (TokenId token = 0; token < 20; ++token) {
    paged.NextStep();
    if (token == 0) {
      paged.Assign(0, params);
    }
    const TokenId id = token * 37 % config.vocab_size;
    paged.Append(0, std::span(&id, 1), /*sample=*/true);
    EXPECT_THAT(slots.Apply(paged.batch()), IsOk());
    const auto row = (*forward)->Run(paged.batch(), paged.batch().token_ids, slots.block_tables(),
                                     slots.blocks_per_slot());
    EXPECT_THAT(row, IsOk());
    logits.insert(logits.end(), row->begin(), row->begin() + config.vocab_size);
  }
  return logits;
}

TEST(GptqWeightsTest, ModelsComputeAsIfDequantizedBefore) {
  std::vector<std::vector<float>> all;
  for (const std::string& folder : test::GptqModelFolders()) {
    SCOPED_TRACE(folder);
    bool quantized = false;
    const std::vector<float> logits = Logits(folder, &quantized);
    EXPECT_TRUE(quantized);
    EXPECT_EQ(logits, Logits(folder + "_plain", &quantized));
    EXPECT_FALSE(quantized);
    for (const std::vector<float>& other : all) {
      EXPECT_NE(logits, other);
    }
    all.push_back(logits);
  }
}

}  // namespace
}  // namespace ferrite

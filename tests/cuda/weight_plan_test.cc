// Where quantised linears go, and why: no GPU is needed to decide it.
#include "cuda/weight_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/marlin_weight.h"
#include "cuda/memory_plan.h"
#include "cuda/model_shapes.h"
#include "cuda/transformer_gpu_weights.h"
#include "tests/engine/model/status_matchers.h"
#include "tests/testing/gptq_linear.h"

namespace ferrite {
namespace {

using test::GptqLinear;
using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Form = PlannedPart::Form;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

absl::StatusOr<GptqShape> Inspect(GptqLinear& linear) {
  return InspectGptq("layers.0.up", linear.tensors());
}

TEST(GpuQuantWeightShapeTest, KnowsWhatALinearIs) {
  GptqLinear plain({.outputs = 128, .inputs = 192, .group_size = 64});
  auto shape = Inspect(plain);
  ASSERT_THAT(shape, IsOk());
  EXPECT_EQ(shape->outputs, 128);
  EXPECT_EQ(shape->inputs, 192);
  EXPECT_EQ(shape->num_groups(), 3);
  EXPECT_TRUE(shape->symmetric && shape->even_groups && !shape->act_order);
  EXPECT_EQ(shape->scale_type, GpuType::kFp16);

  GptqLinear odd({.symmetric = false, .act_order = true, .bf16_scales = true});
  shape = Inspect(odd);
  ASSERT_THAT(shape, IsOk());
  EXPECT_TRUE(!shape->symmetric && shape->even_groups && shape->act_order);
  EXPECT_EQ(shape->scale_type, GpuType::kBf16);
  odd.g_idx().assign(64, 0);
  EXPECT_FALSE(Inspect(odd)->even_groups);
}

// Zero points that are there but all 8 are no zero points, by either convention.
TEST(GpuQuantWeightShapeTest, SeesThatAllZerosAreEight) {
  GptqLinear linear({.symmetric = false});
  for (const auto& [word, less_one] : {std::pair{0x77777777u, true}, {0x88888888u, false}}) {
    std::vector<uint32_t> zeros(2 * 64 / 8, word);
    linear.qzeros().data = std::as_bytes(std::span(zeros));
    linear.tensors().zeros_less_one = less_one;
    EXPECT_TRUE(Inspect(linear)->symmetric);
    linear.tensors().zeros_less_one = !less_one;
    EXPECT_FALSE(Inspect(linear)->symmetric);
    zeros.back() ^= 1 << 28;
    linear.tensors().zeros_less_one = less_one;
    EXPECT_FALSE(Inspect(linear)->symmetric);
  }
}

TEST(GpuQuantWeightShapeTest, RefusesEachWithItsOwnMessage) {
  const auto refused = [](const auto& spoil, const auto& matcher) {
    GptqLinear linear({.symmetric = false, .act_order = true});
    spoil(linear);
    EXPECT_THAT(Inspect(linear), IsStatus(kInvalid, matcher));
  };
  refused([](GptqLinear& linear) { linear.tensors().scales = nullptr; },
          AllOf(HasSubstr("'layers.0.up'"), HasSubstr("no tensor 'scales'")));
  refused([](GptqLinear& linear) { linear.tensors().qweight = nullptr; },
          HasSubstr("no tensor 'qweight'"));
  refused([](GptqLinear& linear) { linear.tensors().inputs = 60; },
          AllOf(HasSubstr("60 inputs"), HasSubstr("the values a word (8)")));
  refused([](GptqLinear& linear) { linear.tensors().outputs = 60; },
          AllOf(HasSubstr("60 outputs"), HasSubstr("the values a word (8)")));
  refused([](GptqLinear& linear) { linear.tensors().group_size = 48; },
          AllOf(HasSubstr("64 inputs"), HasSubstr("group_size (48)")));
  refused([](GptqLinear& linear) { linear.tensors().group_size = 0; }, HasSubstr("groups of 0"));
  refused(
      [](GptqLinear& linear) {
        linear.qweight().shape = {8, 56};
      },
      AllOf(HasSubstr("'up.qweight' has shape [8, 56]"), HasSubstr("expected [8, 64]")));
  refused(
      [](GptqLinear& linear) {
        linear.scales().shape = {1, 64};
      },
      HasSubstr("'up.scales' has shape [1, 64]"));
  refused(
      [](GptqLinear& linear) {
        linear.qzeros().shape = {2, 64};
      },
      HasSubstr("'up.qzeros' has shape [2, 64]"));
  refused([](GptqLinear& linear) { linear.scales().dtype = DType::kF32; },
          HasSubstr("'up.scales' is of type F32"));
  refused([](GptqLinear& linear) { linear.qweight().data = linear.qweight().data.first(100); },
          AllOf(HasSubstr("'up.qweight'"), HasSubstr("2048 bytes, its buffer 100")));
  refused([](GptqLinear& linear) { linear.g_idx()[5] = 2; },
          AllOf(HasSubstr("group 2 at input 5"), HasSubstr("0 to 1")));
}

TEST(MarlinWeightDecisionTest, DeclinesEachWithItsOwnReason) {
  const GptqShape good{.outputs = 128, .inputs = 192, .group_size = 64};
  EXPECT_EQ(WhyNotMarlin(good), "");
  const auto why = [&](const auto& change) {
    GptqShape shape = good;
    change(shape);
    return WhyNotMarlin(shape);
  };
  EXPECT_EQ(why([](GptqShape& s) { s.symmetric = false; }), "");
  EXPECT_EQ(why([](GptqShape& s) { s.act_order = true; }), "");
  EXPECT_EQ(why([](GptqShape& s) { s.group_size = 32; }), "");
  EXPECT_EQ(why([](GptqShape& s) { s.group_size = 192; }), "");
  EXPECT_THAT(why([](GptqShape& s) { s.inputs = 96; }),
              HasSubstr("96 inputs are no multiple of 64"));
  EXPECT_THAT(why([](GptqShape& s) { s.outputs = 96; }),
              HasSubstr("96 outputs are no multiple of 64"));
  EXPECT_THAT(why([](GptqShape& s) { s.group_size = 16; }), HasSubstr("groups of 16"));
  EXPECT_THAT(why([](GptqShape& s) { s.scale_type = GpuType::kBf16; }), HasSubstr("bf16"));
  EXPECT_THAT(why([](GptqShape& s) { s.even_groups = false; }), HasSubstr("g_idx"));
}

TEST(MarlinWeightDecisionTest, OrdersInputsByTheirGroups) {
  GptqLinear linear({.inputs = 16, .group_size = 8, .act_order = true});
  const std::vector<int32_t> g_idx = {1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0};
  std::ranges::copy(g_idx, linear.g_idx().begin());
  EXPECT_THAT(GroupOrder(linear.tensors()),
              ElementsAre(1, 2, 5, 7, 8, 9, 13, 15, 0, 3, 4, 6, 10, 11, 12, 14));
}

// A layer of hidden size 128 with 64 keys and values.
ModelConfig SmallConfig() {
  ModelConfig config;
  config.vocab_size = 64;
  config.hidden_size = 128;
  config.intermediate_size = 192;
  config.num_layers = 1;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 32;
  return config;
}

class LayerPlanTest : public testing::Test {
 protected:
  LayerPlanTest() {
    for (LinearTensors* linear : {&tensors_.q, &tensors_.k, &tensors_.v, &tensors_.o,
                                  &tensors_.gate, &tensors_.up, &tensors_.down}) {
      linear->weight = &dense_;  // whose shape the plan does not look at
    }
  }

  LayerPlan Plan(bool fused = true) {
    const auto plan = PlanLayer(SmallConfig(), "layers.0.", tensors_, {.fused_int4 = fused});
    EXPECT_THAT(plan, IsOk());
    return *plan;
  }

  static void Set(LinearTensors& linear, GptqLinear& quantized) {
    linear = {.weight = nullptr, .gptq = quantized.tensors(), .bias = nullptr};
  }

  static std::vector<Form> Forms(const ProjectionPlan& plan) {
    std::vector<Form> forms;
    for (const PlannedPart& part : plan.parts) {
      forms.push_back(part.form);
    }
    return forms;
  }

  TensorView dense_;
  LayerTensors tensors_;
};

TEST_F(LayerPlanTest, StacksWhatIsDense) {
  const LayerPlan plan = Plan();
  EXPECT_THAT(Forms(plan.qkv), ElementsAre(Form::kDense));
  EXPECT_EQ(plan.qkv.parts[0].count, 3u);
  EXPECT_EQ(plan.qkv.parts[0].Bytes(128), 256 * 128 * 2);
  EXPECT_EQ(plan.qkv.outputs(), 256);
  Int4Counts counts;
  counts.Add(plan.qkv);
  EXPECT_EQ(counts.ToString(), "");
}

TEST_F(LayerPlanTest, StacksWhatHasTheSameGroups) {
  GptqLinear q({.outputs = 128, .inputs = 128, .act_order = true});
  GptqLinear k({.inputs = 128, .symmetric = false, .act_order = true});
  GptqLinear v({.inputs = 128, .act_order = true, .order_seed = 2});
  Set(tensors_.q, q);
  Set(tensors_.k, k);
  Set(tensors_.v, v);
  const LayerPlan plan = Plan();
  EXPECT_THAT(Forms(plan.qkv), ElementsAre(Form::kMarlin, Form::kMarlin));
  EXPECT_EQ(plan.qkv.parts[0].count, 2u);
  EXPECT_EQ(plan.qkv.parts[0].outputs, 192);
  EXPECT_FALSE(plan.qkv.parts[0].shape.symmetric);
  EXPECT_TRUE(plan.qkv.parts[1].shape.symmetric);
  EXPECT_EQ(plan.qkv.parts[1].first, 2u);
}

TEST_F(LayerPlanTest, KeepsGroupsOfOtherSizesApart) {
  GptqLinear gate({.outputs = 192, .inputs = 128, .group_size = 32});
  GptqLinear up({.outputs = 192, .inputs = 128, .group_size = 64});
  Set(tensors_.gate, gate);
  Set(tensors_.up, up);
  EXPECT_THAT(Forms(Plan().gate_up), ElementsAre(Form::kMarlin, Form::kMarlin));
  GptqLinear other({.outputs = 192, .inputs = 128, .group_size = 32, .seed = 5});
  Set(tensors_.up, other);
  EXPECT_THAT(Forms(Plan().gate_up), ElementsAre(Form::kMarlin));
}

TEST_F(LayerPlanTest, MixesFormsWhereItMust) {
  GptqLinear q({.outputs = 128, .inputs = 128, .bf16_scales = true});
  GptqLinear v({.inputs = 128});
  Set(tensors_.q, q);
  Set(tensors_.v, v);
  const LayerPlan plan = Plan();
  EXPECT_THAT(Forms(plan.qkv), ElementsAre(Form::kGptq, Form::kDense, Form::kMarlin));
  EXPECT_THAT(Forms(Plan(/*fused=*/false).qkv),
              ElementsAre(Form::kGptq, Form::kDense, Form::kGptq));
  Int4Counts counts;
  counts.Add(plan.qkv);
  EXPECT_EQ(counts.fused, 1);
  EXPECT_EQ(counts.dequantized, 1);
  EXPECT_EQ(counts.ToString(),
            "1 linears in 4 bits by fused kernels, 1 by dequantising (1: scales are in bf16)");
}

TEST_F(LayerPlanTest, ABiasThatComesWithALinearCounts) {
  TensorView bias;
  tensors_.k.bias = &bias;
  const LayerPlan plan = Plan();
  EXPECT_TRUE(plan.qkv.has_bias);
  EXPECT_FALSE(plan.qkv.needs_bias);
  EXPECT_FALSE(plan.o.has_bias);
}

TEST_F(LayerPlanTest, RefusesALinearOfAnotherSize) {
  GptqLinear down({.outputs = 128, .inputs = 128});
  Set(tensors_.down, down);
  EXPECT_THAT(PlanLayer(SmallConfig(), "layers.0.", tensors_, {}),
              IsStatus(kInvalid, AllOf(HasSubstr("layers.0.down's down"), HasSubstr("[128, 128]"),
                                       HasSubstr("[128, 192]"))));
}

// What is kept of a checkpoint of Llama-3.1-8B is hardly more than the checkpoint.
TEST(Int4FootprintTest, IsThatOfThePackedCheckpoint) {
  const ModelConfig config = NamedModelShape("llama-3.1-8b").value();
  ModelTensors tensors;
  tensors.layers.resize(static_cast<size_t>(config.num_layers));
  const int64_t elements =
      int64_t{config.num_layers} * config.hidden_size *
      (config.q_size() + 2 * config.kv_size() + config.q_size() + 3 * config.intermediate_size);
  const int64_t head = int64_t{2} * 2 * config.vocab_size * config.hidden_size;
  for (const bool fused : {true, false}) {
    for (const int32_t group_size : {32, 64, 128, -1}) {
      for (const bool symmetric : {true, false}) {
        const auto bytes = TransformerGpuWeights::Footprint(
            config, tensors, /*tied=*/false,
            {.max_positions = 8192,
             .plan = {.fused_int4 = fused,
                      .random = {.group_size = group_size, .symmetric = symmetric}}});
        ASSERT_THAT(bytes, IsOk());
        const int64_t groups = group_size < 0 ? elements / config.hidden_size
                                              : elements / group_size;  // no more than that
        const int64_t packed = head + elements / 2 + groups * 2 + groups / 2;
        EXPECT_LE(*bytes, packed + packed / 10) << group_size;
        EXPECT_GE(*bytes, head + elements / 2) << group_size;
      }
    }
  }
}

}  // namespace
}  // namespace ferrite

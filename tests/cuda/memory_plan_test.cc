#include "cuda/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/engine/model/status_matchers.h"

namespace ferrite {
namespace {

using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kExhausted = absl::StatusCode::kResourceExhausted;
constexpr int64_t kMiB = int64_t{1} << 20;

// 750 MiB of budget, of which 100 are taken and 500 needed: 150 are left, 15 blocks.
MemoryRequest Request() {
  return {.total = 1000 * kMiB,
          .free = 900 * kMiB,
          .gpu_memory_fraction = 0.75,
          .weights = 400 * kMiB,
          .workspace = 50 * kMiB,
          .activations = 30 * kMiB,
          .graphs = 20 * kMiB,
          .kv_block = 10 * kMiB};
}

TEST(MemoryPlanTest, GivesWhatRemainsToBlocks) {
  const auto plan = PlanMemory(Request());
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->budget, 750 * kMiB);
  EXPECT_EQ(plan->others, 100 * kMiB);
  EXPECT_EQ(plan->fixed, 500 * kMiB);
  EXPECT_EQ(plan->num_blocks, 15);
  EXPECT_EQ(plan->kv_cache, 150 * kMiB);
  EXPECT_EQ(plan->spare, 0);
}

TEST(MemoryPlanTest, LeavesWhatIsNoWholeBlock) {
  MemoryRequest request = Request();
  request.kv_block = 11 * kMiB;
  const auto plan = PlanMemory(request);
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->num_blocks, 13);
  EXPECT_EQ(plan->spare, 7 * kMiB);
}

TEST(MemoryPlanTest, TakesNoMoreBlocksThanAreOfUse) {
  MemoryRequest request = Request();
  request.max_blocks = 4;
  const auto plan = PlanMemory(request);
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->num_blocks, 4);
  EXPECT_EQ(plan->kv_cache, 40 * kMiB);
  EXPECT_EQ(plan->spare, 110 * kMiB);
}

TEST(MemoryPlanTest, NeverUsesMoreThanIsFree) {
  MemoryRequest request = Request();
  request.gpu_memory_fraction = 1;
  const auto plan = PlanMemory(request);
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->fixed + plan->kv_cache + plan->spare, request.free);
}

TEST(MemoryPlanTest, CountsBlocksInThirtyTwoBits) {
  MemoryRequest request = Request();
  request.total = request.free = int64_t{1} << 50;
  request.kv_block = 1;
  const auto plan = PlanMemory(request);
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->num_blocks, std::numeric_limits<int32_t>::max());
}

TEST(MemoryPlanTest, FitsToTheLastBlock) {
  MemoryRequest request = Request();
  request.min_blocks = 15;
  EXPECT_THAT(PlanMemory(request), IsOk());
  request.min_blocks = 16;
  EXPECT_THAT(PlanMemory(request), IsStatus(kExhausted, HasSubstr("10.0 MiB too much")));
}

TEST(MemoryPlanTest, SaysWithEveryNumberWhatDoesNotFit) {
  MemoryRequest request = Request();
  request.weights = 800 * kMiB;
  request.min_blocks = 2;
  EXPECT_THAT(PlanMemory(request),
              IsStatus(kExhausted,
                       AllOf(HasSubstr("of 1000.0 MiB"), HasSubstr("gpu_memory_fraction 0.75"),
                             HasSubstr("allows 750.0 MiB"), HasSubstr("100.0 MiB are in use"),
                             HasSubstr("weights need 800.0 MiB"), HasSubstr("workspace 50.0 MiB"),
                             HasSubstr("activations 30.0 MiB"), HasSubstr("graphs 20.0 MiB"),
                             HasSubstr("at least 2 KV blocks of 10485760 bytes 20.0 MiB"),
                             HasSubstr("270.0 MiB too much"))));
}

TEST(MemoryPlanTest, RefusesNumbersThatMakeNoSense) {
  const auto with = [](auto change) {
    MemoryRequest request = Request();
    change(request);
    return PlanMemory(request);
  };
  const auto fraction = HasSubstr("gpu_memory_fraction must be above 0 and at most 1");
  for (const double value : {0.0, -0.5, 1.01, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_THAT(with([=](auto& r) { r.gpu_memory_fraction = value; }), IsStatus(kInvalid, fraction))
        << value;
  }
  EXPECT_THAT(with([](auto& r) { r.weights = -1; }),
              IsStatus(kInvalid, AllOf(HasSubstr("weights"), HasSubstr("-1"))));
  EXPECT_THAT(with([](auto& r) { r.kv_block = 0; }), IsStatus(kInvalid, HasSubstr("kv_block")));
  EXPECT_THAT(with([](auto& r) { r.min_blocks = 0; }), IsStatus(kInvalid, HasSubstr("min_blocks")));
  EXPECT_THAT(with([](auto& r) { r.free = r.total + 1; }), IsStatus(kInvalid, HasSubstr("free")));
  EXPECT_THAT(with([](auto& r) {
                r.min_blocks = 3;
                r.max_blocks = 2;
              }),
              IsStatus(kInvalid, HasSubstr("max_blocks must be at least min_blocks, 3, got 2")));
}

TEST(MemoryPlanTest, CountsAnAllocationAsCudaDoes) {
  EXPECT_EQ(DeviceFootprint(0), 0);
  EXPECT_EQ(DeviceFootprint(1), 512);
  EXPECT_EQ(DeviceFootprint(513), 1024);
  EXPECT_EQ(DeviceFootprint(kMiB), 2 * kMiB);
  EXPECT_EQ(DeviceFootprint(2 * kMiB), 2 * kMiB);
  EXPECT_EQ(DeviceFootprint(2 * kMiB + 1), 4 * kMiB);
}

TEST(MemoryPlanTest, CountsWeightsAndKeys) {
  ModelConfig config;
  config.vocab_size = 1024;
  config.hidden_size = 1024;
  config.intermediate_size = 2048;
  config.num_layers = 3;
  config.num_heads = 16;
  config.num_kv_heads = 8;
  config.head_dim = 64;
  // qkv 4, o 2, gate_up 8, down 4 MiB; embedding and head 2 each; norms a page together.
  EXPECT_EQ(WeightFootprint(config, false, 1), (3 * 18 + 4 + 2) * kMiB);
  EXPECT_EQ(WeightFootprint(config, true, 1), (3 * 18 + 2 + 2) * kMiB);
  // 16384 positions of 32 pairs: 2 MiB of cosines, as much of sines.
  EXPECT_EQ(WeightFootprint(config, true, 16384), (3 * 18 + 2 + 4 + 2) * kMiB);
  // 3 layers, keys and values, 8 heads of 64, 2 bytes.
  EXPECT_EQ(KvBlockBytes(config, 16), 3 * 2 * 8 * 64 * 2 * 16);
}

}  // namespace
}  // namespace ferrite

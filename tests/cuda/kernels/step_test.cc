#include "cuda/kernels/step.h"

#include "cuda/kernels/add_bias.h"
#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;

class StepTest : public test::GpuTest {};

TEST_F(StepTest, ChangesLandWhereTheySay) {
  constexpr int32_t kSlots = 5;
  constexpr int32_t kBlocks = 7;
  const Device<int32_t> tables{std::vector<int32_t>(kSlots * kBlocks, -1)};
  const Device<GpuSamplingParams> params{std::vector<GpuSamplingParams>(kSlots)};
  std::vector<TableChange> changes;
  for (int32_t i = 0; i < kSlots * kBlocks; i += 2) {
    changes.push_back({i / kBlocks, i % kBlocks, 100 + i});
  }
  std::vector<GpuSamplingParams> updates(2);
  updates[0].top_k = 11;
  updates[1].seed = 0x123456789abcdef0;
  const Device<TableChange> device_changes(changes);
  const Device<GpuSamplingParams> device_updates(updates);
  const Device<int32_t> slots(std::vector<int32_t>{4, 1});
  const SlotChanges all{.tables = device_changes.get(),
                        .num_tables = static_cast<int32_t>(changes.size()),
                        .params = device_updates.get(),
                        .param_slots = slots.get(),
                        .num_params = 2};
  test::CheckCuda(ApplySlotChanges(all, kBlocks, tables.get(), params.get(), nullptr));
  const std::vector<int32_t> result = tables.Read();
  for (int32_t i = 0; i < kSlots * kBlocks; ++i) {
    EXPECT_EQ(result[i], i % 2 == 0 ? 100 + i : -1);
  }
  const std::vector<GpuSamplingParams> now = params.Read();
  EXPECT_EQ(now[4].top_k, 11);
  EXPECT_EQ(now[1].seed, 0x123456789abcdef0u);
  EXPECT_EQ(now[0].top_k, 0);
}

TEST_F(StepTest, InputsComeFromTheRowsOfTheStepBefore) {
  const Device<int32_t> input_rows(std::vector<int32_t>{-1, 2, 0, -1});
  const Device<int32_t> cu_seqlens(std::vector<int32_t>{0, 3, 4, 5, 6});
  const Device<int32_t> sampled(std::vector<int32_t>{50, 51, 52});
  const Device<int32_t> tokens(std::vector<int32_t>{1, 2, 3, 0, 0, 9});
  test::CheckCuda(
      ResolveInputs(input_rows.get(), cu_seqlens.get(), 4, sampled.get(), tokens.get(), nullptr));
  EXPECT_EQ(tokens.Read(), (std::vector<int32_t>{1, 2, 3, 52, 50, 9}));
}

// Rows are wider apart than the bias; what lies between is not touched.
TEST_F(StepTest, BiasesAreAdded) {
  constexpr int32_t kRows = 3;
  constexpr int32_t kWidth = 301;
  constexpr int32_t kStride = 320;
  const auto bias = test::RandomNormal(kWidth, 1);
  const auto y = test::RandomNormal(kRows * kStride, 2);
  const auto biased = [&](float value, int32_t i) {
    return double{value} + (i % kStride < kWidth ? bias[i % kStride] : 0);
  };
  const Device<float> device_bias(bias);
  for (const GpuType type : {GpuType::kFp16, GpuType::kBf16}) {
    const Device<uint16_t> out(test::Narrow(type, y));
    test::CheckCuda(AddBias(type, device_bias.get(), kRows, kWidth, out.get(), kStride, nullptr));
    const auto actual = test::Widen(type, out.Read());
    std::vector<double> expected;
    for (int32_t i = 0; i < kRows * kStride; ++i) {
      expected.push_back(biased(test::Widen(type, test::Narrow(type, y[i])), i));
    }
    EXPECT_LE(test::RelativeError(actual, expected), test::Tolerance(type));
  }
  const Device<float> out(y);
  test::CheckCuda(AddBiasFp32(device_bias.get(), kRows, kWidth, out.get(), kStride, nullptr));
  const auto actual = out.Read();
  for (int32_t i = 0; i < kRows * kStride; ++i) {
    EXPECT_EQ(actual[i], static_cast<float>(biased(y[i], i)));
  }
}

}  // namespace
}  // namespace ferrite

// Quantised weights on the device, raw and repacked.
#include "cuda/gpu_quant_weight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/marlin_weight.h"
#include "tests/cuda/gpu_test.h"
#include "tests/engine/model/status_matchers.h"
#include "tests/testing/gptq_linear.h"

namespace ferrite {
namespace {

using test::Device;
using test::GptqLinear;
using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

static_assert(!std::is_copy_constructible_v<GpuQuantWeight>);
static_assert(!std::is_copy_constructible_v<MarlinWeight>);

class QuantWeightTest : public test::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped()) {
      stream_.emplace(Stream::Create(0).value());
    }
  }
  void TearDown() override {
    if (!IsSkipped()) {
      test::CheckCuda(cudaGetLastError());
    }
  }

  static std::vector<uint16_t> Expected(const GptqLinear& linear) {
    std::vector<uint16_t> values;
    for (int64_t n = 0; n < linear.outputs(); ++n) {
      for (int64_t k = 0; k < linear.inputs(); ++k) {
        values.push_back(test::Narrow(GpuType::kFp16, static_cast<float>(linear.At(n, k))));
      }
    }
    return values;
  }

  template <typename Weight, typename Dequantize>
  std::vector<uint16_t> Dequantized(const Weight& weight, const Dequantize& dequantize) {
    const Device<uint16_t> out(static_cast<size_t>(weight.outputs() * weight.inputs()));
    test::CheckCuda(cudaDeviceSynchronize());  // its poison is on another stream
    test::CheckCuda(dequantize(weight.view(), 0, static_cast<int32_t>(weight.outputs()),
                               GpuType::kFp16, out.get(), stream_->get()));
    EXPECT_THAT(stream_->Synchronize(), IsOk());
    return out.Read();
  }

  std::optional<Stream> stream_;
};

TEST_F(QuantWeightTest, HoldsWhatTheCheckpointHas) {
  for (const bool symmetric : {true, false}) {
    for (const bool act_order : {true, false}) {
      GptqLinear linear({.outputs = 72,
                         .inputs = 96,
                         .group_size = 32,
                         .symmetric = symmetric,
                         .act_order = act_order,
                         .bf16_scales = act_order});
      const auto weight = GpuQuantWeight::Create("up", linear.tensors(), *stream_);
      ASSERT_THAT(weight, IsOk());
      EXPECT_EQ(weight->name(), "up");
      EXPECT_EQ(weight->device(), 0);
      EXPECT_EQ(weight->view().qzeros == nullptr, symmetric);
      EXPECT_EQ(weight->view().g_idx == nullptr, !act_order);
      EXPECT_EQ(Dequantized(*weight, DequantizeGptq), Expected(linear));
    }
  }
}

TEST_F(QuantWeightTest, RefusesDataOnTheDevice) {
  GptqLinear linear({});
  const Device<uint32_t> words(64 / 8 * 64);
  linear.qweight().data = std::as_bytes(std::span(words.get(), words.size()));
  EXPECT_THAT(GpuQuantWeight::Create("up", linear.tensors(), *stream_),
              IsStatus(kInvalid, AllOf(HasSubstr("'up.qweight'"), HasSubstr("host memory"))));
}

TEST_F(QuantWeightTest, RefusesAPlaceThatIsTooSmall) {
  const GptqShape shape{.outputs = 64, .inputs = 64, .group_size = 32};
  const auto memory = std::make_shared<DeviceMemory>(
      DeviceMemory::Create(0, GpuQuantWeight::Bytes(shape) - 1, "a test").value());
  EXPECT_THAT(GpuQuantWeight::Place("up", shape, memory, 0),
              IsStatus(kInvalid, HasSubstr("linear 'up' needs 2304 bytes, its place has 2303")));
}

// Three linears, symmetric and not, one after the other through the same room.
TEST_F(QuantWeightTest, RepacksLinearsNextToEachOther) {
  for (const bool act_order : {false, true}) {
    std::vector<std::unique_ptr<GptqLinear>> linears;
    GptqShape whole{
        .outputs = 0, .inputs = 192, .group_size = 64, .symmetric = false, .act_order = act_order};
    std::vector<uint16_t> expected;
    for (const int64_t outputs : {128, 64, 192}) {
      linears.push_back(std::make_unique<GptqLinear>(
          test::GptqLinearOptions{.outputs = outputs,
                                  .inputs = 192,
                                  .group_size = 64,
                                  .symmetric = outputs == 64,
                                  .act_order = act_order,
                                  .seed = static_cast<uint32_t>(outputs)}));
      whole.outputs += outputs;
      const auto more = Expected(*linears.back());
      expected.insert(expected.end(), more.begin(), more.end());
    }
    const auto weight = MarlinWeight::Allocate("qkv", whole, 0);
    ASSERT_THAT(weight, IsOk());
    EXPECT_EQ(weight->bytes(), MarlinWeight::Bytes(whole));
    if (act_order) {
      const std::vector<int32_t> order = GroupOrder(linears[0]->tensors());
      test::CheckCuda(
          cudaMemcpy(weight->order(), order.data(), order.size() * 4, cudaMemcpyHostToDevice));
      test::CheckCuda(cudaDeviceSynchronize());
    }
    int64_t first = 0;
    for (const auto& linear : linears) {
      const auto raw = GpuQuantWeight::Create("part", linear->tensors(), *stream_);
      ASSERT_THAT(raw, IsOk());
      ASSERT_THAT(weight->Fill(first, *raw, *stream_), IsOk());
      first += linear->outputs();
    }
    EXPECT_EQ(Dequantized(*weight, DequantizeInt4), expected);
  }
}

TEST_F(QuantWeightTest, RefusesWhatDoesNotBelongTogether) {
  const GptqShape whole{.outputs = 128, .inputs = 128, .group_size = 64};
  const auto weight = MarlinWeight::Allocate("gate_up", whole, 0);
  ASSERT_THAT(weight, IsOk());
  const auto refused = [&](int64_t first, test::GptqLinearOptions options) {
    GptqLinear linear(options);
    const auto raw = GpuQuantWeight::Create("up", linear.tensors(), *stream_);
    ASSERT_THAT(raw, IsOk());
    EXPECT_THAT(weight->Fill(first, *raw, *stream_),
                IsStatus(kInvalid, AllOf(HasSubstr("'up'"), HasSubstr("'gate_up'"))));
  };
  refused(128, {.outputs = 64, .inputs = 128, .group_size = 64});
  refused(-64, {.outputs = 64, .inputs = 128, .group_size = 64});
  refused(8, {.outputs = 64, .inputs = 128, .group_size = 64});
  refused(0, {.outputs = 64, .inputs = 64, .group_size = 64});
  refused(0, {.outputs = 64, .inputs = 128, .group_size = 32});
  refused(0, {.outputs = 64, .inputs = 128, .group_size = 64, .symmetric = false});
  refused(0, {.outputs = 64, .inputs = 128, .group_size = 64, .act_order = true});
  refused(0, {.outputs = 72, .inputs = 128, .group_size = 64});
  GptqShape odd = whole;
  odd.inputs = 160;
  EXPECT_THAT(MarlinWeight::Allocate("down", odd, 0),
              IsStatus(kInvalid, HasSubstr("linear 'down' cannot be repacked: 160 inputs")));
}

}  // namespace
}  // namespace ferrite

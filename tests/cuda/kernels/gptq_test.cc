#include "cuda/kernels/gptq.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/cuda/gpu_test.h"
#include "tests/testing/gptq_fixtures.h"

namespace ferrite {
namespace {

using test::Device;
using test::GptqFixture;

template <typename T>
std::vector<T> Values(const TensorView* tensor) {
  std::vector<T> values(tensor == nullptr ? 0 : tensor->data.size() / sizeof(T));
  if (!values.empty()) {
    std::memcpy(values.data(), tensor->data.data(), tensor->data.size());
  }
  return values;
}

// A linear on the device as a checkpoint has it, and repacked.
class OnDevice {
 public:
  struct Raw {
    int32_t inputs = 0;
    int32_t outputs = 0;
    int32_t group_size = 0;
    bool zeros_less_one = false;
    GpuType scale_type = GpuType::kFp16;
    std::vector<uint32_t> qweight = {};
    std::vector<uint16_t> scales = {};
    std::vector<uint32_t> qzeros = {};  // or empty
    std::vector<int32_t> g_idx = {};    // or empty
  };

  explicit OnDevice(const Raw& raw)
      : qweight_(raw.qweight), scales_(raw.scales), qzeros_(raw.qzeros), g_idx_(raw.g_idx) {
    weight_ = {.qweight = qweight_.get(),
               .scales = scales_.get(),
               .scale_type = raw.scale_type,
               .qzeros = raw.qzeros.empty() ? nullptr : qzeros_.get(),
               .zeros_less_one = raw.zeros_less_one,
               .g_idx = raw.g_idx.empty() ? nullptr : g_idx_.get(),
               .inputs = raw.inputs,
               .outputs = raw.outputs,
               .group_size = raw.group_size};
  }
  explicit OnDevice(const GptqFixture& fixture) : OnDevice(RawOf(fixture)) {}

  static Raw RawOf(const GptqFixture& fixture) {
    const GptqTensors& tensors = fixture.tensors;
    return {.inputs = static_cast<int32_t>(fixture.inputs),
            .outputs = static_cast<int32_t>(fixture.outputs),
            .group_size = static_cast<int32_t>(tensors.group_size),
            .zeros_less_one = tensors.zeros_less_one,
            .qweight = Values<uint32_t>(tensors.qweight),
            .scales = Values<uint16_t>(tensors.scales),
            .qzeros = Values<uint32_t>(tensors.qzeros),
            .g_idx = Values<int32_t>(tensors.g_idx)};
  }

  bool CanRepack() const { return weight_.inputs % 64 == 0 && weight_.outputs % 64 == 0; }

  // `with_zeros` false leaves them out: all are 8.
  void Repack(bool with_zeros) {
    const size_t size = size_t(weight_.inputs) * weight_.outputs;
    const size_t groups = size_t(weight_.inputs) / weight_.group_size * weight_.outputs;
    tiles_ = std::make_unique<Device<uint32_t>>(size / 8);
    tile_scales_ = std::make_unique<Device<uint16_t>>(groups);
    tile_zeros_ = std::make_unique<Device<uint8_t>>(groups);
    std::vector<int32_t> order;
    if (weight_.g_idx != nullptr) {
      const std::vector<int32_t> groups_of = g_idx_.Read();
      order.resize(groups_of.size());
      std::iota(order.begin(), order.end(), 0);
      std::ranges::stable_sort(order, {}, [&](int32_t input) { return groups_of[input]; });
    }
    order_ = std::make_unique<Device<int32_t>>(order);
    int4_ = {.tiles = tiles_->get(),
             .scales = tile_scales_->get(),
             .zeros = with_zeros ? tile_zeros_->get() : nullptr,
             .order = order.empty() ? nullptr : order_->get(),
             .inputs = weight_.inputs,
             .outputs = weight_.outputs,
             .group_size = weight_.group_size};
    test::CheckCuda(RepackGptq(weight_, int4_, nullptr));
  }

  // Outputs [first, first + count), with what lies behind them untouched.
  std::vector<uint16_t> Dequantized(GpuType type, int32_t first, int32_t count, bool repacked) {
    constexpr size_t kGuard = 64;
    const size_t size = size_t(count) * weight_.inputs;
    const Device<uint16_t> out(size + kGuard);
    test::CheckCuda(repacked ? DequantizeInt4(int4_, first, count, type, out.get(), nullptr)
                             : DequantizeGptq(weight_, first, count, type, out.get(), nullptr));
    std::vector<uint16_t> values = out.Read();
    EXPECT_EQ(std::count(values.end() - kGuard, values.end(), 0xFFFF), int64_t{kGuard});
    values.resize(size);
    return values;
  }

 private:
  Device<uint32_t> qweight_;
  Device<uint16_t> scales_;
  Device<uint32_t> qzeros_;
  Device<int32_t> g_idx_;
  GptqWeight weight_;
  std::unique_ptr<Device<uint32_t>> tiles_;
  std::unique_ptr<Device<uint16_t>> tile_scales_;
  std::unique_ptr<Device<uint8_t>> tile_zeros_;
  std::unique_ptr<Device<int32_t>> order_;
  Int4Weight int4_;
};

class GptqTest : public test::GpuTest, public testing::WithParamInterface<GpuType> {};

INSTANTIATE_TEST_SUITE_P(Types, GptqTest, testing::Values(GpuType::kFp16, GpuType::kBf16),
                         [](const auto& type) { return test::TypeName(type.param); });

TEST_P(GptqTest, EveryVariantIsTheReferenceBitForBit) {
  const std::string name = GetParam() == GpuType::kFp16 ? "expected.fp16" : "expected.bf16";
  int repacked = 0;
  for (const GptqFixture& fixture : test::LoadGptqFixtures()) {
    SCOPED_TRACE(fixture.file);
    const auto expected = Values<uint16_t>(fixture.checkpoint->Find(name));
    OnDevice weight(fixture);
    const auto outputs = static_cast<int32_t>(fixture.outputs);
    EXPECT_EQ(weight.Dequantized(GetParam(), 0, outputs, false), expected);
    if (weight.CanRepack()) {
      ++repacked;
      for (const bool with_zeros : {true, false}) {
        if (with_zeros || fixture.config.symmetric) {
          weight.Repack(with_zeros);
          EXPECT_EQ(weight.Dequantized(GetParam(), 0, outputs, true), expected);
        }
      }
    }
  }
  EXPECT_EQ(repacked, 6 + 33);
}

// A linear of random values, and the rule of GPTQ's format on the host.
struct Random {
  Random(int32_t inputs, int32_t outputs, int32_t group_size, bool act_order, bool zeros,
         GpuType scale_type) {
    std::mt19937 generator(7);
    raw = {.inputs = inputs,
           .outputs = outputs,
           .group_size = group_size,
           .zeros_less_one = true,
           .scale_type = scale_type};
    const size_t groups = size_t(inputs) / group_size;
    raw.qweight.resize(size_t(inputs) / 8 * outputs);
    std::ranges::generate(raw.qweight, std::ref(generator));
    for (const float value : test::RandomNormal(groups * outputs, 3, 0.01f)) {
      raw.scales.push_back(test::Narrow(scale_type, value));
    }
    if (zeros) {
      raw.qzeros.resize(groups * outputs / 8);
      std::ranges::generate(raw.qzeros, std::ref(generator));
    }
    if (act_order) {
      for (int32_t k = 0; k < inputs; ++k) {
        raw.g_idx.push_back(k / group_size);
      }
      std::ranges::shuffle(raw.g_idx, generator);
    }
  }

  double At(int64_t n, int64_t k) const {
    const int64_t g = raw.g_idx.empty() ? k / raw.group_size : raw.g_idx[k];
    const auto q = static_cast<int>(raw.qweight[k / 8 * raw.outputs + n] >> (4 * (k % 8)) & 15);
    int zero = 8;
    if (!raw.qzeros.empty()) {
      const uint32_t word = raw.qzeros[(g * raw.outputs + n) / 8] + 0x11111111u;
      zero = static_cast<int>(word >> (4 * (n % 8)) & 15);
    }
    return double{test::Widen(raw.scale_type, raw.scales[g * raw.outputs + n])} * (q - zero);
  }

  // Rounded once: a product of 11 and 4 bits is exact in fp32.
  std::vector<uint16_t> Rows(GpuType type, int32_t first, int32_t count) const {
    std::vector<uint16_t> values;
    for (int32_t n = first; n < first + count; ++n) {
      for (int32_t k = 0; k < raw.inputs; ++k) {
        values.push_back(test::Narrow(type, static_cast<float>(At(n, k))));
      }
    }
    return values;
  }

  OnDevice::Raw raw;
};

TEST_P(GptqTest, LargeOnesMatchDouble) {
  for (const bool act_order : {false, true}) {
    for (const bool zeros : {false, true}) {
      const Random random(2048, 1152, 128, act_order, zeros, GpuType::kFp16);
      OnDevice weight(random.raw);
      weight.Repack(zeros);
      const auto expected = random.Rows(GetParam(), 0, 1152);
      EXPECT_EQ(weight.Dequantized(GetParam(), 0, 1152, false), expected);
      EXPECT_EQ(weight.Dequantized(GetParam(), 0, 1152, true), expected);
    }
  }
}

TEST_P(GptqTest, AnyRangeOfOutputs) {
  for (const bool act_order : {false, true}) {
    const Random random(192, 320, 32, act_order, true, GpuType::kFp16);
    OnDevice weight(random.raw);
    weight.Repack(true);
    for (const auto& [first, count] : {std::pair{0, 64}, {64, 256}, {16, 17}, {37, 1}, {5, 300}}) {
      const auto expected = random.Rows(GetParam(), first, count);
      EXPECT_EQ(weight.Dequantized(GetParam(), first, count, false), expected) << first;
      EXPECT_EQ(weight.Dequantized(GetParam(), first, count, true), expected) << first;
    }
  }
}

TEST_P(GptqTest, SizesThatNoTileHas) {
  for (const GpuType scale_type : {GpuType::kFp16, GpuType::kBf16}) {
    for (const auto& [inputs, outputs, group_size] :
         {std::tuple{8, 8, 8}, {24, 40, 8}, {136, 72, 136}, {4104, 24, 24}}) {
      for (const bool act_order : {false, true}) {
        const Random random(inputs, outputs, group_size, act_order, true, scale_type);
        OnDevice weight(random.raw);
        EXPECT_EQ(weight.Dequantized(GetParam(), 0, outputs, false),
                  random.Rows(GetParam(), 0, outputs))
            << inputs << " x " << outputs;
      }
    }
  }
}

// Rows that need more shared memory than a kernel has by default.
TEST_P(GptqTest, ManyOrderedInputs) {
  const Random random(28672, 64, 128, true, false, GpuType::kFp16);
  OnDevice weight(random.raw);
  weight.Repack(false);
  EXPECT_EQ(weight.Dequantized(GetParam(), 0, 64, true), random.Rows(GetParam(), 0, 64));
}

}  // namespace
}  // namespace ferrite

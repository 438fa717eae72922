#include "cuda/gpu_weight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <type_traits>
#include <variant>
#include <vector>

#include "cuda/linear_weight.h"
#include "cuda/weight_uploader.h"
#include "tests/cuda/gpu_test.h"
#include "tests/engine/model/status_matchers.h"

namespace ferrite {
namespace {

using test::Device;
using test::IsOk;
using test::IsStatus;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

static_assert(!std::is_copy_constructible_v<GpuWeight> && !std::is_copy_assignable_v<GpuWeight>);
static_assert(!std::is_copy_constructible_v<Linear>);

TensorView Matrix(std::span<const float> values, int64_t outputs, int64_t inputs,
                  std::string_view name = "layers.1.up") {
  return {.name = name,
          .dtype = DType::kF32,
          .shape = {outputs, inputs},
          .data = std::as_bytes(values)};
}

std::vector<uint16_t> Read(const void* data, int64_t size) {
  std::vector<uint16_t> bits(size);
  test::CheckCuda(cudaMemcpy(bits.data(), data, size * 2, cudaMemcpyDeviceToHost));
  return bits;
}

std::vector<uint16_t> Read(const GpuWeight& weight) {
  return Read(weight.data(), weight.outputs() * weight.inputs());
}

class GpuWeightTest : public test::GpuTest, public testing::WithParamInterface<GpuType> {
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

  WeightUploader Uploader(int64_t chunk_bytes, int num_chunks) {
    return WeightUploader::Create(*stream_, &team_,
                                  {.chunk_bytes = chunk_bytes, .num_chunks = num_chunks})
        .value();
  }

  std::optional<Stream> stream_;
  ThreadTeam team_{4};
};

INSTANTIATE_TEST_SUITE_P(Types, GpuWeightTest, testing::Values(GpuType::kFp16, GpuType::kBf16),
                         [](const auto& type) { return test::TypeName(type.param); });

TEST_P(GpuWeightTest, HoldsTheTensorRounded) {
  for (const auto& [outputs, inputs] : {std::pair{1, 1}, {7, 13}, {300, 1000}}) {
    const auto values = test::RandomNormal(outputs * inputs, 1);
    const auto weight = GpuWeight::Create(Matrix(values, outputs, inputs), GetParam(), *stream_);
    ASSERT_THAT(weight, IsOk());
    EXPECT_EQ(weight->outputs(), outputs);
    EXPECT_EQ(weight->inputs(), inputs);
    EXPECT_EQ(weight->type(), GetParam());
    EXPECT_EQ(weight->device(), 0);
    EXPECT_EQ(weight->name(), "layers.1.up");
    EXPECT_EQ(Read(*weight), test::Narrow(GetParam(), values));
  }
}

// The view begins at an odd byte within a larger buffer.
TEST_P(GpuWeightTest, HonoursTheStartOfAView) {
  const auto values = test::RandomNormal(64 * 33, 2);
  std::string buffer(101, '\x7F');
  buffer.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  buffer.append(50, '\x7F');
  TensorView view = Matrix({}, 64, 33);
  view.data = std::as_bytes(std::span(buffer)).subspan(101, values.size() * sizeof(float));
  const auto weight = GpuWeight::Create(view, GetParam(), *stream_);
  ASSERT_THAT(weight, IsOk());
  EXPECT_EQ(Read(*weight), test::Narrow(GetParam(), values));
}

TEST_P(GpuWeightTest, RefusesAWrongDtype) {
  const std::vector<float> values(6);
  TensorView view = Matrix(values, 2, 3);
  view.dtype = DType::kI32;
  EXPECT_THAT(GpuWeight::Create(view, GetParam(), *stream_),
              IsStatus(kInvalid, AllOf(HasSubstr("'layers.1.up'"), HasSubstr("I32"))));
}

TEST_P(GpuWeightTest, RefusesAShortBuffer) {
  const std::vector<float> values(5);
  EXPECT_THAT(
      GpuWeight::Create(Matrix(values, 2, 3), GetParam(), *stream_),
      IsStatus(kInvalid, AllOf(HasSubstr("'layers.1.up'"), HasSubstr("24"), HasSubstr("20"))));
}

TEST_P(GpuWeightTest, RefusesWhatIsNoMatrix) {
  const std::vector<float> values(6);
  TensorView view = Matrix(values, 2, 3);
  view.shape = {6};
  EXPECT_THAT(GpuWeight::Create(view, GetParam(), *stream_),
              IsStatus(kInvalid, AllOf(HasSubstr("'layers.1.up'"), HasSubstr("[6]"))));
}

TEST_P(GpuWeightTest, RefusesDataOnTheWrongSide) {
  const Device<float> values(6);
  EXPECT_THAT(
      GpuWeight::Create(Matrix(std::span(values.get(), 6), 2, 3), GetParam(), *stream_),
      IsStatus(kInvalid, AllOf(HasSubstr("'layers.1.up'"), HasSubstr("must be in host memory"))));
  std::vector<float> host(6);
  WeightUploader uploader = Uploader(1 << 16, 1);
  std::vector<uint16_t> destination(6);
  EXPECT_THAT(
      uploader.Upload(Matrix(host, 2, 3), FormatOf(GetParam()), destination.data(), 6),
      IsStatus(kInvalid, AllOf(HasSubstr("'layers.1.up'"), HasSubstr("not in device memory"))));
}

TEST_P(GpuWeightTest, RefusesAPlaceOfAnotherSize) {
  std::vector<float> host(6);
  const Device<uint16_t> destination(5);
  WeightUploader uploader = Uploader(1 << 16, 1);
  EXPECT_THAT(uploader.Upload(Matrix(host, 2, 3), FormatOf(GetParam()), destination.get(), 5),
              IsStatus(kInvalid, AllOf(HasSubstr("'layers.1.up'"), HasSubstr("6 elements"),
                                       HasSubstr("place 5"))));
}

TEST_P(GpuWeightTest, RefusesValuesBeyondTheType) {
  std::vector<float> values(600000, 1.0f);
  values[555555] = 70000.0f;
  const auto weight = GpuWeight::Create(Matrix(values, 600, 1000), GetParam(), *stream_);
  if (GetParam() == GpuType::kBf16) {
    EXPECT_THAT(weight, IsOk());
  } else {
    EXPECT_THAT(weight, IsStatus(kInvalid, AllOf(HasSubstr("'layers.1.up' has 70000"),
                                                 HasSubstr("element 555555"), HasSubstr("65504"))));
  }
}

void Nap(void* done) {
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  static_cast<std::atomic<bool>*>(done)->store(true);
}

// Work that was on the stream before writes the same memory: the copy must come after it.
TEST_P(GpuWeightTest, CopiesInTheStreamsOrder) {
  const auto values = test::RandomNormal(5000, 3);
  const Device<uint16_t> destination(5000);
  WeightUploader uploader = Uploader(1 << 16, 2);
  std::atomic<bool> done = false;
  test::CheckCuda(cudaLaunchHostFunc(stream_->get(), Nap, &done));
  test::CheckCuda(cudaMemsetAsync(destination.get(), 0xFF, 10000, stream_->get()));
  ASSERT_THAT(
      uploader.Upload(Matrix(values, 5, 1000), FormatOf(GetParam()), destination.get(), 5000),
      IsOk());
  EXPECT_FALSE(done);
  ASSERT_THAT(uploader.Finish(), IsOk());
  EXPECT_TRUE(done);
  EXPECT_EQ(destination.Read(), test::Narrow(GetParam(), values));
}

TEST_P(GpuWeightTest, HasArrivedWhenMade) {
  const auto values = test::RandomNormal(6, 4);
  std::atomic<bool> done = false;
  test::CheckCuda(cudaLaunchHostFunc(stream_->get(), Nap, &done));
  ASSERT_THAT(GpuWeight::Create(Matrix(values, 2, 3), GetParam(), *stream_), IsOk());
  EXPECT_TRUE(done);
}

// Many times around few small chunks, in tensors of all sizes; each chunk is reused while the
// stream is busy.
TEST_P(GpuWeightTest, ChunksAreNotReusedTooEarly) {
  for (const int num_chunks : {1, 2, 3}) {
    WeightUploader uploader = Uploader(WeightUploader::kLeastChunkBytes + 100, num_chunks);
    const std::vector<int64_t> sizes = {1, 40000, 7, 123457, 32768, 3, 0, 500000};
    std::vector<std::vector<float>> values;
    std::vector<std::unique_ptr<Device<uint16_t>>> destinations;
    for (const int64_t size : sizes) {
      values.push_back(test::RandomNormal(size, static_cast<uint32_t>(size)));
      destinations.push_back(std::make_unique<Device<uint16_t>>(size));
    }
    std::atomic<bool> done = false;
    test::CheckCuda(cudaLaunchHostFunc(stream_->get(), Nap, &done));
    for (size_t i = 0; i < sizes.size(); ++i) {
      ASSERT_THAT(uploader.Upload(Matrix(values[i], sizes[i], 1), FormatOf(GetParam()),
                                  destinations[i]->get(), sizes[i]),
                  IsOk());
    }
    ASSERT_THAT(uploader.Finish(), IsOk());
    for (size_t i = 0; i < sizes.size(); ++i) {
      EXPECT_EQ(destinations[i]->Read(), test::Narrow(GetParam(), values[i])) << sizes[i];
    }
  }
}

TEST_P(GpuWeightTest, SharesItsStorage) {
  const auto values = test::RandomNormal(6, 5);
  std::optional<GpuWeight> weight =
      GpuWeight::Create(Matrix(values, 2, 3), GetParam(), *stream_).value();
  const GpuWeight sharer = weight->Share();
  EXPECT_EQ(sharer.data(), weight->data());
  weight.reset();
  EXPECT_EQ(Read(sharer), test::Narrow(GetParam(), values));
}

TEST_P(GpuWeightTest, UploaderRefusesChunksOfNoUse) {
  EXPECT_THAT(WeightUploader::Create(*stream_, &team_, {.chunk_bytes = 1000}),
              IsStatus(kInvalid, HasSubstr("1000")));
  EXPECT_THAT(WeightUploader::Create(*stream_, &team_, {.num_chunks = 0}),
              IsStatus(kInvalid, HasSubstr("0 of")));
}

GpuWeight Weight(const std::string& name, int64_t outputs, int64_t inputs, GpuType type) {
  return GpuWeight::Allocate(name, outputs, inputs, type, 0).value();
}

template <typename... Weights>
std::vector<LinearWeight> Parts(Weights... weights) {
  std::vector<LinearWeight> parts;
  (parts.push_back(std::move(weights)), ...);
  return parts;
}

// Stands for a form that holds no 16-bit values.
struct QuantisedForm {
  std::string name() const { return "layers.4.qkv"; }
};

TEST_P(GpuWeightTest, OnlyA16BitWeightHas16BitValues) {
  using Forms = std::variant<GpuWeight, QuantisedForm>;
  const Forms dense = Weight("a", 2, 3, GetParam());
  EXPECT_FALSE(IsQuantized(dense));
  ASSERT_THAT(DenseWeight(dense), IsOk());
  EXPECT_EQ(*DenseWeight(dense), std::get_if<GpuWeight>(&dense));
  const Forms quantised = QuantisedForm();
  EXPECT_TRUE(IsQuantized(quantised));
  EXPECT_THAT(DenseWeight(quantised), IsStatus(absl::StatusCode::kFailedPrecondition,
                                               HasSubstr("'layers.4.qkv' is quantised")));
}

TEST_P(GpuWeightTest, LinearKnowsWhereItsPartsBegin) {
  const auto linear =
      Linear::Create(Parts(Weight("q", 8, 4, GetParam()), Weight("k", 2, 4, GetParam()),
                           Weight("v", 3, 4, GetParam())),
                     DeviceBuffer<float>::Create(0, 13, "a bias").value());
  ASSERT_THAT(linear, IsOk());
  ASSERT_EQ(linear->parts().size(), 3u);
  EXPECT_EQ(linear->parts()[0].first_output, 0);
  EXPECT_EQ(linear->parts()[1].first_output, 8);
  EXPECT_EQ(linear->parts()[2].first_output, 10);
  EXPECT_EQ(linear->outputs(), 13);
  EXPECT_EQ(linear->inputs(), 4);
  EXPECT_NE(linear->bias(), nullptr);
}

TEST_P(GpuWeightTest, LinearRefusesPartsThatDoNotFit) {
  EXPECT_THAT(Linear::Create({}), IsStatus(kInvalid, HasSubstr("1 to 3 parts, got 0")));
  const auto part = [&] { return Weight("q", 2, 4, GetParam()); };
  EXPECT_THAT(Linear::Create(Parts(part(), part(), part(), part())),
              IsStatus(kInvalid, HasSubstr("got 4")));
  EXPECT_THAT(Linear::Create(Parts(part(), Weight("k", 2, 5, GetParam()))),
              IsStatus(kInvalid, AllOf(HasSubstr("'k' with 5 inputs"), HasSubstr("'q' with 4"))));
  EXPECT_THAT(Linear::Create(Parts(part()), DeviceBuffer<float>::Create(0, 3, "a bias").value()),
              IsStatus(kInvalid, HasSubstr("'q' must have 2 elements, got 3")));
  const auto bare = Linear::Create(Parts(part()));
  ASSERT_THAT(bare, IsOk());
  EXPECT_EQ(bare->bias(), nullptr);
}

}  // namespace
}  // namespace ferrite

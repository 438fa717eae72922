#include "cuda/kernels/int4_matmul.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <tuple>

#include "gmock/gmock.h"
#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;
using Epilogue = Int4MatmulArguments::Epilogue;

constexpr int32_t kMaxRows = 512;
constexpr int32_t kDistinctRows = 61;  // the others are these times powers of two

struct Shape {
  int32_t inputs;
  int32_t outputs;
  int32_t group_size;
  bool zeros;
  bool order;
};

int32_t Multiprocessors() {
  int32_t count = 0;
  test::CheckCuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
  return count;
}

// A random weight as it lies in memory, and what it stands for: column k multiplies input k of x.
class Weight {
 public:
  explicit Weight(const Shape& shape, uint32_t seed = 1) : shape_(shape) {
    const int32_t groups = shape.inputs / shape.group_size;
    std::mt19937 generator(seed);
    std::vector<uint16_t> scales(size_t{1} * shape.outputs * groups);
    std::vector<uint8_t> zeros(scales.size());
    for (size_t i = 0; i < scales.size(); ++i) {
      const float scale =
          (0.5f + generator() % 1024 / 1024.0f) / 8 / std::sqrt(static_cast<float>(shape.inputs));
      const uint32_t kind = generator() % 32;
      scales[i] = test::Narrow(GpuType::kFp16, kind == 0 ? 0 : kind == 1 ? -scale : scale);
      zeros[i] = shape.zeros ? generator() % 17 : 8;
    }
    order_.resize(shape.inputs);
    std::iota(order_.begin(), order_.end(), 0);
    if (shape.order) {
      std::shuffle(order_.begin(), order_.end(), generator);
    }
    std::vector<uint32_t> tiles(size_t{1} * shape.outputs * shape.inputs / 8);
    values_.resize(size_t{1} * shape.outputs * shape.inputs);
    for (int32_t n = 0; n < shape.outputs; ++n) {
      for (int32_t k = 0; k < shape.inputs; ++k) {
        const uint32_t q = generator() % 16;
        Put(n, k, q, &tiles);
        const size_t at = (size_t{1} * (n / 16) * groups + k / shape.group_size) * 16 + n % 16;
        values_[size_t{1} * n * shape.inputs + order_[k]] =
            test::Widen(GpuType::kFp16, scales[at]) * (static_cast<int>(q) - zeros[at]);
      }
    }
    tiles_ = std::make_unique<Device<uint32_t>>(tiles);
    scales_ = std::make_unique<Device<uint16_t>>(scales);
    zeros_ = std::make_unique<Device<uint8_t>>(zeros);
    order_on_device_ = std::make_unique<Device<int32_t>>(order_);
  }

  Int4Weight Get() const {
    return {.tiles = tiles_->get(),
            .scales = scales_->get(),
            .zeros = shape_.zeros ? zeros_->get() : nullptr,
            .order = shape_.order ? order_on_device_->get() : nullptr,
            .inputs = shape_.inputs,
            .outputs = shape_.outputs,
            .group_size = shape_.group_size};
  }
  const std::vector<double>& values() const { return values_; }  // [outputs, inputs]

 private:
  // As int4_weight.h says.
  void Put(int32_t n, int32_t k, uint32_t q, std::vector<uint32_t>* tiles) const {
    const size_t tile = size_t{1} * (n / 16) * (shape_.inputs / 64) + k / 64;
    const int32_t lane = n % 8 * 4 + k % 8 / 2;
    const int32_t bit = k % 16 / 8 * 8 + n % 16 / 8 * 4 + k % 2 * 16;
    (*tiles)[(tile * 32 + lane) * 4 + k % 64 / 16] |= q << bit;
  }

  Shape shape_;
  std::vector<int32_t> order_;
  std::vector<double> values_;
  std::unique_ptr<Device<uint32_t>> tiles_;
  std::unique_ptr<Device<uint16_t>> scales_;
  std::unique_ptr<Device<uint8_t>> zeros_;
  std::unique_ptr<Device<int32_t>> order_on_device_;
};

// One weight and its products with 512 rows, of which any number is asked for. The workspace serves
// all of them, one after the other.
class Problem {
 public:
  Problem(GpuType type, const Shape& shape)
      : type_(type),
        shape_(shape),
        weight_(shape),
        x_(MakeRows(type, shape.inputs)),
        bias_(test::RandomNormal(shape.outputs, 5)),
        start_(test::RandomNormal(size_t{kMaxRows} * (shape.outputs + 6), 6)),
        products_(Multiply()),
        bias_on_device_(bias_),
        workspace_(std::vector<uint8_t>(
            Int4MatmulWorkspaceBytes(kMaxRows, shape.inputs, shape.outputs, Multiprocessors()))) {}

  void Check(Epilogue epilogue, int32_t rows, bool with_bias, int32_t padding) {
    const int32_t stride = shape_.outputs + padding;
    std::vector<double> expected;
    for (int32_t row = 0; row < rows; ++row) {
      const double factor = Factor(row);
      for (int32_t n = 0; n < shape_.outputs; ++n) {
        double sum = factor * products_[size_t{1} * (row % kDistinctRows) * shape_.outputs + n];
        sum += with_bias * bias_[n];
        expected.push_back(epilogue == Epilogue::kAdd ? sum + start_[size_t{1} * row * stride + n]
                                                      : sum);
      }
    }
    const std::vector<float> first = Run(epilogue, rows, with_bias, stride);
    EXPECT_LE(test::RelativeError(first, expected), test::Tolerance(type_))
        << rows << " rows, epilogue " << static_cast<int>(epilogue) << ", padding " << padding;
    EXPECT_TRUE(first == Run(epilogue, rows, with_bias, stride)) << "not the same bits again";
  }

 private:
  static double Factor(int32_t row) { return 1 << row / kDistinctRows % 4; }

  static std::vector<uint16_t> MakeRows(GpuType type, int32_t inputs) {
    const std::vector<float> distinct = test::RandomNormal(size_t{kDistinctRows} * inputs, 2);
    std::vector<float> rows;
    for (int32_t row = 0; row < kMaxRows; ++row) {
      const auto from = distinct.begin() + size_t{1} * (row % kDistinctRows) * inputs;
      const auto factor = static_cast<float>(Factor(row));
      std::transform(from, from + inputs, std::back_inserter(rows),
                     [&](float value) { return value * factor; });
    }
    return test::Narrow(type, rows);
  }

  std::vector<double> Multiply() const {
    const std::vector<float> x =
        test::Widen(type_, {x_.data(), size_t{kDistinctRows} * shape_.inputs});
    std::vector<double> products;
    for (int32_t row = 0; row < kDistinctRows; ++row) {
      for (int32_t n = 0; n < shape_.outputs; ++n) {
        products.push_back(
            std::inner_product(x.begin() + size_t{1} * row * shape_.inputs,
                               x.begin() + size_t{1} * (row + 1) * shape_.inputs,
                               weight_.values().begin() + size_t{1} * n * shape_.inputs, 0.0));
      }
    }
    return products;
  }

  // Outputs as floats, once what lies beside them was seen untouched.
  std::vector<float> Run(Epilogue epilogue, int32_t rows, bool with_bias, int32_t stride) {
    const size_t size = size_t{1} * rows * stride;
    const int32_t words = epilogue == Epilogue::kStore ? 1 : 2;
    const Device<uint16_t> x({x_.begin(), x_.begin() + size_t{1} * rows * shape_.inputs});
    const Device<uint16_t> y(size * words);
    for (int32_t row = 0; row < rows && epilogue == Epilogue::kAdd; ++row) {
      const size_t at = size_t{1} * row * stride;
      test::CheckCuda(cudaMemcpy(y.get() + 2 * at, start_.data() + at,
                                 shape_.outputs * sizeof(float), cudaMemcpyHostToDevice));
    }
    test::CheckCuda(Int4Matmul({.type = type_,
                                .rows = rows,
                                .x = x.get(),
                                .weight = weight_.Get(),
                                .bias = with_bias ? bias_on_device_.get() : nullptr,
                                .epilogue = epilogue,
                                .y = y.get(),
                                .y_stride = stride,
                                .workspace = workspace_.get()},
                               nullptr));
    const std::vector<uint16_t> bits = y.Read();
    std::vector<float> values;
    bool untouched = true;
    for (int32_t row = 0; row < rows; ++row) {
      const uint16_t* from = bits.data() + size_t{1} * row * stride * words;
      std::vector<float> of_row(shape_.outputs);
      if (words == 2) {
        std::memcpy(of_row.data(), from, shape_.outputs * sizeof(float));
      } else {
        of_row = test::Widen(type_, {from, static_cast<size_t>(shape_.outputs)});
      }
      values.insert(values.end(), of_row.begin(), of_row.end());
      untouched &= std::all_of(from + shape_.outputs * words, from + stride * words,
                               [](uint16_t word) { return word == 0xFFFF; });
    }
    EXPECT_TRUE(untouched) << "wrote between rows";
    return values;
  }

  GpuType type_;
  Shape shape_;
  Weight weight_;
  std::vector<uint16_t> x_;  // [512, inputs]
  std::vector<float> bias_;
  std::vector<float> start_;      // what kAdd adds to
  std::vector<double> products_;  // [61, outputs]
  Device<float> bias_on_device_;
  Device<uint8_t> workspace_;
};

class Int4MatmulTest : public test::GpuTest,
                       public testing::WithParamInterface<std::tuple<GpuType, Shape>> {};

std::string CaseName(const testing::TestParamInfo<std::tuple<GpuType, Shape>>& test_case) {
  const auto& [type, shape] = test_case.param;
  return test::TypeName(type) + "Inputs" + std::to_string(shape.inputs) + "Outputs" +
         std::to_string(shape.outputs) + "Groups" + std::to_string(shape.group_size) +
         (shape.zeros ? "Zeros" : "") + (shape.order ? "Order" : "");
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Int4MatmulTest,
    testing::Combine(
        testing::Values(GpuType::kFp16, GpuType::kBf16),
        testing::Values(Shape{64, 64, 64, false, false}, Shape{64, 192, 32, true, true},
                        Shape{128, 64, 128, true, false}, Shape{192, 192, 96, true, false},
                        Shape{576, 576, 64, false, true}, Shape{576, 576, 32, true, false},
                        Shape{4096, 64, 4096, true, true}, Shape{4096, 576, 32, false, false},
                        Shape{4096, 4096, 128, true, false}, Shape{14336, 192, 128, false, true})),
    CaseName);

TEST_P(Int4MatmulTest, MatchesDouble) {
  const auto& [type, shape] = GetParam();
  Problem problem(type, shape);
  int32_t turn = 0;
  for (const int32_t rows : {1, 9, 16, 17, 33, 64, 100, 128, 200, 256, 512}) {
    for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kFp32, Epilogue::kAdd}) {
      problem.Check(epilogue, rows, turn % 2 == 0, turn % 5 == 0 ? 6 : 0);
      ++turn;
    }
  }
}

// Each product reads what the one before wrote, the workspace is shared and starts overlap: a wait
// left out shows as other bits than with a pause after every product.
using Int4MatmulChainTest = test::GpuTest;

TEST_F(Int4MatmulChainTest, OverlappedInAGraphGivesTheBitsOfOneByOne) {
  constexpr int32_t kHidden = 1024;
  constexpr int32_t kWide = 3584;
  constexpr int32_t kLayers = 12;
  const Weight up({kHidden, kWide, 128, false, false}, 1);
  const Weight down({kWide, kHidden, 64, true, true}, 2);
  for (const int32_t rows : {16, 32, 64, 200}) {
    const std::vector<uint16_t> start =
        test::Narrow(GpuType::kBf16, test::RandomNormal(size_t{1} * rows * kHidden, 3));
    const Device<uint16_t> x(start);
    const Device<uint16_t> middle(size_t{1} * rows * kWide);
    const Device<uint8_t> workspace(
        std::vector<uint8_t>(Int4MatmulWorkspaceBytes(rows, kWide, kWide, Multiprocessors())));
    const Int4MatmulArguments first{.type = GpuType::kBf16,
                                    .rows = rows,
                                    .x = x.get(),
                                    .weight = up.Get(),
                                    .y = middle.get(),
                                    .y_stride = kWide,
                                    .workspace = workspace.get()};
    const Int4MatmulArguments second{.type = GpuType::kBf16,
                                     .rows = rows,
                                     .x = middle.get(),
                                     .weight = down.Get(),
                                     .y = x.get(),
                                     .y_stride = kHidden,
                                     .workspace = workspace.get()};
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const auto& arguments : {first, second}) {
        test::CheckCuda(Int4Matmul(arguments, nullptr));
        test::CheckCuda(cudaDeviceSynchronize());
      }
    }
    const std::vector<uint16_t> expected = x.Read();

    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    test::CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    test::CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int layer = 0; layer < kLayers; ++layer) {
      test::CheckCuda(Int4Matmul(first, stream));
      test::CheckCuda(Int4Matmul(second, stream));
    }
    test::CheckCuda(cudaStreamEndCapture(stream, &graph));
    test::CheckCuda(cudaGraphInstantiate(&executable, graph, 0));
    for (int replay = 0; replay < 5; ++replay) {
      test::CheckCuda(cudaMemcpy(x.get(), start.data(), start.size() * 2, cudaMemcpyHostToDevice));
      test::CheckCuda(cudaDeviceSynchronize());  // the copy may return early, the stream not wait
      test::CheckCuda(cudaGraphLaunch(executable, stream));
      test::CheckCuda(cudaStreamSynchronize(stream));
      EXPECT_TRUE(x.Read() == expected) << rows << " rows, replay " << replay;
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

TEST_F(Int4MatmulChainTest, RefusesWhatItCannotDo) {
  const Device<uint16_t> x(16);
  Int4MatmulArguments good{.rows = 1,
                           .x = x.get(),
                           .weight = {.inputs = 128, .outputs = 64, .group_size = 64},
                           .y = x.get(),
                           .y_stride = 64,
                           .workspace = x.get()};
  const auto with = [&](auto change) {
    Int4MatmulArguments arguments = good;
    change(arguments);
    return Int4Matmul(arguments, nullptr);
  };
  EXPECT_EQ(with([](auto& a) { a.rows = 0; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto& a) { a.weight.inputs = 96; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto& a) { a.weight.outputs = 32; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto& a) { a.weight.group_size = 16; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto& a) { a.weight.group_size = 96; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto& a) { a.y_stride = 62; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto& a) { a.y_stride = 65; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto& a) { a.workspace = nullptr; }), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace ferrite

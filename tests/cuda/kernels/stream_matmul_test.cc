#include "cuda/kernels/stream_matmul.h"

#include <cstring>
#include <memory>
#include <tuple>

#include "gmock/gmock.h"
#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;
using Epilogue = StreamMatmulArguments::Epilogue;

constexpr float kEpsilon = 1e-5f;
constexpr size_t kGuard = 64;  // values past the end that must stay as they are

double Silu(double gate) { return gate / (1 + std::exp(-gate)); }

// Partials poisoned, counters zero, neither larger than asked for.
class Scratch {
 public:
  explicit Scratch(StreamMatmulArguments* arguments) {
    StreamMatmulScratch size;
    test::CheckCuda(SizeStreamMatmulScratch(*arguments, &size));
    if (size.counters > 0) {
      partials_ = std::make_unique<Device<float>>(size.partials);
      counters_ = std::make_unique<Device<int32_t>>(std::vector<int32_t>(size.counters, 0));
      arguments->partials = partials_->get();
      arguments->counters = counters_->get();
    }
  }
  bool used() const { return counters_ != nullptr; }
  std::vector<int32_t> Counters() const {
    return used() ? counters_->Read() : std::vector<int32_t>();
  }

 private:
  std::unique_ptr<Device<float>> partials_;
  std::unique_ptr<Device<int32_t>> counters_;
};

// One weight, with sixteen rows of inputs and their products in float64.
class Problem {
 public:
  Problem(GpuType type, int32_t inputs, int32_t outputs)
      : type_(type),
        inputs_(inputs),
        outputs_(outputs),
        x_(test::Narrow(type, test::RandomNormal(Rows(inputs), 1))),
        residual_(test::RandomNormal(Rows(inputs), 2, 3.0f)),
        norm_(test::RandomNormal(inputs, 3)),
        weight_(test::Narrow(type, test::RandomNormal(size_t{1} * outputs * inputs, 4,
                                                      1.0f / std::sqrt(float(inputs))))),
        bias_(test::RandomNormal(outputs, 5)),
        start_(test::RandomNormal(Rows(outputs), 6)),
        weight_on_device_(weight_),
        bias_on_device_(bias_),
        norm_on_device_(norm_) {
    const std::vector<float> x = test::Widen(type, x_);
    products_[0] = Multiply({x.begin(), x.end()});
    products_[1] = Multiply(Normed());
  }

  void Check(Epilogue epilogue, bool norm, int32_t rows, bool with_bias) {
    const bool pairs = epilogue == Epilogue::kSiluMul;
    const int32_t width = pairs ? outputs_ / 2 : outputs_;
    std::vector<double> expected;
    for (int32_t row = 0; row < rows; ++row) {
      for (int32_t i = 0; i < width; ++i) {
        const auto sum = [&](int32_t output) {
          return products_[norm][size_t(row) * outputs_ + output] + with_bias * bias_[output];
        };
        expected.push_back(pairs                        ? Silu(sum(i)) * sum(width + i)
                           : epilogue == Epilogue::kAdd ? sum(i) + start_[row * width + i]
                                                        : sum(i));
      }
    }
    const std::vector<float> first = Run(epilogue, norm, rows, with_bias, width);
    double tolerance = epilogue == Epilogue::kFp32 && !norm ? 2e-5 : test::Tolerance(type_);
    if (expected.size() < 64) {
      tolerance *= 4;  // too few for their roundings to average out
    }
    EXPECT_LE(test::RelativeError(first, expected), tolerance)
        << rows << " x " << inputs_ << " x " << outputs_ << ", epilogue " << int(epilogue)
        << (norm ? ", norm" : "");
    EXPECT_EQ(first, Run(epilogue, norm, rows, with_bias, width)) << "not the same bits again";
  }

 private:
  static size_t Rows(int32_t width) { return size_t{1} * kMaxStreamRows * width; }

  std::vector<double> Normed() const {
    std::vector<double> normed(residual_.size());
    for (int32_t row = 0; row < kMaxStreamRows; ++row) {
      const float* from = residual_.data() + size_t(row) * inputs_;
      double squares = 0;
      for (int32_t k = 0; k < inputs_; ++k) {
        squares += double{from[k]} * from[k];
      }
      for (int32_t k = 0; k < inputs_; ++k) {
        normed[size_t(row) * inputs_ + k] =
            from[k] / std::sqrt(squares / inputs_ + kEpsilon) * norm_[k];
      }
    }
    return normed;
  }

  std::vector<double> Multiply(const std::vector<double>& x) const {
    const std::vector<float> weight = test::Widen(type_, weight_);
    std::vector<double> products(Rows(outputs_));
    for (int32_t output = 0; output < outputs_; ++output) {
      for (int32_t row = 0; row < kMaxStreamRows; ++row) {
        double sum = 0;
        for (int32_t k = 0; k < inputs_; ++k) {
          sum += x[size_t(row) * inputs_ + k] * weight[size_t(output) * inputs_ + k];
        }
        products[size_t(row) * outputs_ + output] = sum;
      }
    }
    return products;
  }

  // Outputs as floats, once what lies past them and the counters were seen untouched.
  std::vector<float> Run(Epilogue epilogue, bool norm, int32_t rows, bool with_bias,
                         int32_t width) {
    const size_t size = size_t(rows) * width;
    const size_t inputs = size_t(rows) * inputs_;
    const Device<uint16_t> x({x_.begin(), x_.begin() + inputs});
    const Device<float> residual({residual_.begin(), residual_.begin() + inputs});
    const bool wide = epilogue == Epilogue::kFp32 || epilogue == Epilogue::kAdd;
    const Device<uint16_t> y((size + kGuard) * (wide ? 2 : 1));
    if (epilogue == Epilogue::kAdd) {
      test::CheckCuda(
          cudaMemcpy(y.get(), start_.data(), size * sizeof(float), cudaMemcpyHostToDevice));
    }
    StreamMatmulArguments arguments{.type = type_,
                                    .rows = rows,
                                    .inputs = inputs_,
                                    .outputs = outputs_,
                                    .x = norm ? nullptr : x.get(),
                                    .residual = norm ? residual.get() : nullptr,
                                    .norm_weight = norm ? norm_on_device_.get() : nullptr,
                                    .epsilon = kEpsilon,
                                    .weight = weight_on_device_.get(),
                                    .bias = with_bias ? bias_on_device_.get() : nullptr,
                                    .epilogue = epilogue,
                                    .y = y.get()};
    const Scratch scratch(&arguments);
    test::CheckCuda(StreamMatmul(arguments, nullptr));
    const std::vector<uint16_t> bits = y.Read();
    EXPECT_THAT(scratch.Counters(), testing::Each(0));
    std::vector<float> values(size);
    if (wide) {
      std::memcpy(values.data(), bits.data(), size * sizeof(float));
    } else {
      values = test::Widen(type_, {bits.data(), size});
    }
    EXPECT_THAT(std::span(bits).subspan(size * (wide ? 2 : 1)), testing::Each(0xFFFF));
    return values;
  }

  GpuType type_;
  int32_t inputs_;
  int32_t outputs_;
  std::vector<uint16_t> x_;      // [16, inputs]
  std::vector<float> residual_;  // [16, inputs]
  std::vector<float> norm_;
  std::vector<uint16_t> weight_;  // [outputs, inputs]
  std::vector<float> bias_;
  std::vector<float> start_;         // [16, outputs], what kAdd adds to
  std::vector<double> products_[2];  // [16, outputs], of x and of the normed residual
  Device<uint16_t> weight_on_device_;
  Device<float> bias_on_device_;
  Device<float> norm_on_device_;
};

struct Shape {
  int32_t inputs;
  int32_t outputs;
};

class StreamMatmulTest : public test::GpuTest,
                         public testing::WithParamInterface<std::tuple<GpuType, Shape>> {};

std::string CaseName(const testing::TestParamInfo<std::tuple<GpuType, Shape>>& test_case) {
  const auto& [type, shape] = test_case.param;
  return test::TypeName(type) + "Inputs" + std::to_string(shape.inputs) + "Outputs" +
         std::to_string(shape.outputs);
}

INSTANTIATE_TEST_SUITE_P(Shapes, StreamMatmulTest,
                         testing::Combine(testing::Values(GpuType::kFp16, GpuType::kBf16),
                                          testing::Values(Shape{8, 1}, Shape{576, 1536},
                                                          Shape{1000, 5}, Shape{1000, 4097},
                                                          Shape{4096, 1536}, Shape{14336, 64},
                                                          Shape{14344, 9})),
                         CaseName);

TEST_P(StreamMatmulTest, MatchesDouble) {
  const auto& [type, shape] = GetParam();
  Problem any(type, shape.inputs, shape.outputs);
  Problem pairs(type, shape.inputs, 2 * (shape.outputs / 2 + 1));
  for (const int32_t rows : {1, 2, 3, 4, 7, 8, 9, 13, 16}) {
    for (const bool norm : {false, true}) {
      for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kFp32, Epilogue::kAdd}) {
        any.Check(epilogue, norm, rows, rows % 2 == 0);
      }
      pairs.Check(Epilogue::kSiluMul, norm, rows, rows % 2 == 0);
    }
  }
}

TEST_P(StreamMatmulTest, MatchesDoubleAtEveryRowCount) {
  const auto& [type, shape] = GetParam();
  if (size_t{1} * shape.inputs * shape.outputs > 1'000'000) {
    GTEST_SKIP() << "the small shapes do";
  }
  Problem problem(type, shape.inputs, shape.outputs);
  for (int32_t rows = 1; rows <= kMaxStreamRows; ++rows) {
    problem.Check(Epilogue::kStore, false, rows, true);
  }
}

using StreamMatmulChainTest = test::GpuTest;

// Each product reads what the one before wrote, the scratch is shared and starts overlap: a wait
// left out shows as other bits than with a pause after every product.
TEST_F(StreamMatmulChainTest, OverlappedInAGraphGivesTheBitsOfOneByOne) {
  constexpr int32_t kHidden = 2048;
  constexpr int32_t kWide = 8192;
  constexpr int32_t kLayers = 12;
  const GpuType type = GpuType::kBf16;
  const auto weights = [&](int32_t outputs, int32_t inputs, uint32_t seed) {
    return test::Narrow(type, test::RandomNormal(size_t{1} * outputs * inputs, seed,
                                                 1.0f / std::sqrt(float(inputs))));
  };
  const Device<uint16_t> up(weights(2 * kWide, kHidden, 1));
  const Device<uint16_t> down(weights(kHidden, kWide, 2));
  const Device<float> norm(std::vector<float>(kHidden, 1.0f));
  for (const int32_t rows : {1, 4, 16}) {
    const auto start = test::RandomNormal(size_t{1} * rows * kHidden, 3);
    const Device<float> residual(start);
    const Device<uint16_t> middle(size_t{1} * rows * kWide);
    StreamMatmulArguments first{.type = type,
                                .rows = rows,
                                .inputs = kHidden,
                                .outputs = 2 * kWide,
                                .residual = residual.get(),
                                .norm_weight = norm.get(),
                                .epsilon = kEpsilon,
                                .weight = up.get(),
                                .epilogue = Epilogue::kSiluMul,
                                .y = middle.get()};
    StreamMatmulArguments second{.type = type,
                                 .rows = rows,
                                 .inputs = kWide,
                                 .outputs = kHidden,
                                 .x = middle.get(),
                                 .weight = down.get(),
                                 .epilogue = Epilogue::kAdd,
                                 .y = residual.get()};
    StreamMatmulScratch sizes[2];
    test::CheckCuda(SizeStreamMatmulScratch(first, &sizes[0]));
    test::CheckCuda(SizeStreamMatmulScratch(second, &sizes[1]));
    const Device<float> partials(std::max(sizes[0].partials, sizes[1].partials));
    const Device<int32_t> counters(
        std::vector<int32_t>(std::max(sizes[0].counters, sizes[1].counters), 0));
    first.partials = second.partials = partials.get();
    first.counters = second.counters = counters.get();
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const auto& arguments : {first, second}) {
        test::CheckCuda(StreamMatmul(arguments, nullptr));
        test::CheckCuda(cudaDeviceSynchronize());
      }
    }
    const std::vector<float> expected = residual.Read();

    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    test::CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    test::CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int layer = 0; layer < kLayers; ++layer) {
      test::CheckCuda(StreamMatmul(first, stream));
      test::CheckCuda(StreamMatmul(second, stream));
    }
    test::CheckCuda(cudaStreamEndCapture(stream, &graph));
    test::CheckCuda(cudaGraphInstantiate(&executable, graph, 0));
    for (int replay = 0; replay < 5; ++replay) {
      // On the same stream: a plain copy may return before the data is there, and this stream does
      // not wait for the legacy one.
      test::CheckCuda(cudaMemcpyAsync(residual.get(), start.data(), start.size() * sizeof(float),
                                      cudaMemcpyHostToDevice, stream));
      test::CheckCuda(cudaGraphLaunch(executable, stream));
      test::CheckCuda(cudaStreamSynchronize(stream));
      EXPECT_EQ(residual.Read(), expected) << rows << " rows, replay " << replay;
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

TEST_F(StreamMatmulChainTest, RefusesWhatItCannotDo) {
  const Device<uint16_t> x(16 * 16384);
  const StreamMatmulArguments good{
      .rows = 1, .inputs = 64, .outputs = 6, .x = x.get(), .weight = x.get(), .y = x.get()};
  const auto with = [&](auto change) {
    StreamMatmulArguments arguments = good;
    change(arguments);
    return StreamMatmul(arguments, nullptr);
  };
  EXPECT_EQ(with([](auto& a) { a.rows = 0; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto& a) { a.rows = kMaxStreamRows + 1; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto& a) { a.inputs = 60; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto& a) { a.outputs = 0; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto& a) {
              a.outputs = 5;
              a.epilogue = Epilogue::kSiluMul;
            }),
            cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto& a) {  // too much for a block, and no scratch
              a.rows = 16;
              a.inputs = 16384;
            }),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace ferrite

#include "cuda/kernels/stream_int4.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "cuda/kernels/stream_int4_limits.h"
#include "gmock/gmock.h"
#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;
using Epilogue = StreamMatmulArguments::Epilogue;

constexpr float kEpsilon = 1e-5f;
constexpr size_t kGuard = 64;  // values past the end that must stay as they are
constexpr int32_t kRows = kMaxStreamInt4Rows;

double Silu(double gate) { return gate / (1 + std::exp(-gate)); }

struct Case {
  const char* name;
  int32_t inputs;
  int32_t outputs;
  int32_t group_size;
  bool zeros;
  bool order;
};

// A random 4-bit weight: as tiles on the device, and its values in float64.
class Weight {
 public:
  explicit Weight(const Case& c) : case_(c) {
    std::mt19937 random(7);
    const int32_t groups = c.inputs / c.group_size;
    std::vector<uint16_t> scales(size_t(groups) * c.outputs);
    std::vector<uint8_t> zeros(scales.size());
    const float size = 0.2f / std::sqrt(float(c.inputs));
    std::uniform_real_distribution<float> scale(0.1f * size, 2 * size);
    for (size_t i = 0; i < scales.size(); ++i) {
      scales[i] = test::Narrow(GpuType::kFp16, scale(random));
      zeros[i] = c.zeros ? random() % 17 : 8;
    }
    std::vector<int32_t> order(c.inputs);
    std::iota(order.begin(), order.end(), 0);
    if (c.order) {
      std::shuffle(order.begin(), order.end(), random);
    }
    std::vector<uint32_t> tiles(size_t{1} * c.outputs * c.inputs / 8);
    for (uint32_t& word : tiles) {
      word = random();
    }
    values_.resize(size_t{1} * c.outputs * c.inputs);
    for (int32_t n = 0; n < c.outputs; ++n) {
      for (int32_t k = 0; k < c.inputs; ++k) {
        const size_t at = (size_t(n) / 16 * groups + k / c.group_size) * 16 + n % 16;
        values_[size_t(n) * c.inputs + order[k]] = double{test::Widen(GpuType::kFp16, scales[at])} *
                                                   (int{Nibble(tiles, n, k)} - int{zeros[at]});
      }
    }
    tiles_ = std::make_unique<Device<uint32_t>>(tiles);
    scales_ = std::make_unique<Device<uint16_t>>(scales);
    zeros_ = std::make_unique<Device<uint8_t>>(zeros);
    order_ = std::make_unique<Device<int32_t>>(order);
  }

  // [outputs, inputs], input k for x[k].
  const std::vector<double>& values() const { return values_; }
  Int4Weight Get() const {
    return {.tiles = tiles_->get(),
            .scales = scales_->get(),
            .zeros = case_.zeros ? zeros_->get() : nullptr,
            .order = case_.order ? order_->get() : nullptr,
            .inputs = case_.inputs,
            .outputs = case_.outputs,
            .group_size = case_.group_size};
  }

 private:
  // As int4_weight.h has it.
  uint8_t Nibble(const std::vector<uint32_t>& tiles, int32_t n, int32_t k) const {
    const size_t tile = size_t(n) / 16 * (case_.inputs / 64) + k / 64;
    const int32_t word = k % 64 / 16;
    const int32_t lane = n % 8 * 4 + k % 8 / 2;
    const int32_t i = n % 16 / 8 + k % 16 / 8 * 2;
    const int32_t shift = 4 * i + k % 2 * 16;
    return tiles[(tile * 32 + lane) * 4 + word] >> shift & 15;
  }

  Case case_;
  std::vector<double> values_;
  std::unique_ptr<Device<uint32_t>> tiles_;
  std::unique_ptr<Device<uint16_t>> scales_;
  std::unique_ptr<Device<uint8_t>> zeros_;
  std::unique_ptr<Device<int32_t>> order_;
};

// Partials poisoned, counters zero, neither larger than asked for.
class Scratch {
 public:
  Scratch(const Int4Weight& weight, const DeviceLimits& limits, StreamMatmulArguments* arguments) {
    StreamMatmulScratch size;
    test::CheckCuda(stream_int4::SizeScratch(*arguments, weight, limits, &size));
    if (size.counters > 0) {
      partials_ = std::make_unique<Device<float>>(size.partials);
      counters_ = std::make_unique<Device<int32_t>>(std::vector<int32_t>(size.counters, 0));
      arguments->partials = partials_->get();
      arguments->counters = counters_->get();
    }
  }
  std::vector<int32_t> Counters() const {
    return counters_ != nullptr ? counters_->Read() : std::vector<int32_t>();
  }

 private:
  std::unique_ptr<Device<float>> partials_;
  std::unique_ptr<Device<int32_t>> counters_;
};

// One weight, with eight rows of inputs and their products in float64.
class Problem {
 public:
  // On a device whose blocks have at most that much shared memory; zero: as much as it has.
  Problem(GpuType type, const Case& c, int block_shared_bytes = 0)
      : type_(type),
        inputs_(c.inputs),
        outputs_(c.outputs),
        weight_(c),
        x_(test::Narrow(type, test::RandomNormal(size_t{1} * kRows * c.inputs, 1))),
        residual_(test::RandomNormal(x_.size(), 2, 3.0f)),
        norm_(test::RandomNormal(c.inputs, 3)),
        bias_(test::RandomNormal(c.outputs, 5)),
        start_(test::RandomNormal(size_t{1} * kRows * c.outputs, 6)),
        bias_on_device_(bias_),
        norm_on_device_(norm_) {
    test::CheckCuda(GetDeviceLimits(&limits_));
    if (block_shared_bytes > 0) {
      limits_.block_shared_bytes = std::min(limits_.block_shared_bytes, block_shared_bytes);
    }
    const std::vector<float> x = test::Widen(type, x_);
    products_[0] = Multiply({x.begin(), x.end()});
    products_[1] = Multiply(Normed());
  }

  void Check(Epilogue epilogue, bool norm, int32_t rows, bool with_bias) {
    const bool pairs = epilogue == Epilogue::kSiluMul;
    const int32_t width = pairs ? outputs_ / 2 : outputs_;
    const std::vector<float> first = Run(epilogue, norm, rows, with_bias, width);
    const double tolerance = epilogue == Epilogue::kFp32 && !norm ? 2e-5 : test::Tolerance(type_);
    for (int32_t row = 0; row < rows; ++row) {
      std::vector<double> expected;
      for (int32_t i = 0; i < width; ++i) {
        const auto sum = [&](int32_t output) {
          return products_[norm][size_t(row) * outputs_ + output] + with_bias * bias_[output];
        };
        expected.push_back(pairs                        ? Silu(sum(i)) * sum(width + i)
                           : epilogue == Epilogue::kAdd ? sum(i) + start_[row * width + i]
                                                        : sum(i));
      }
      EXPECT_LE(test::RelativeError(std::span(first).subspan(size_t(row) * width, width), expected),
                tolerance)
          << "row " << row << " of " << rows << ", epilogue " << int(epilogue)
          << (norm ? ", norm" : "");
    }
    EXPECT_EQ(first, Run(epilogue, norm, rows, with_bias, width)) << "not the same bits again";
  }

 private:
  std::vector<double> Normed() const {
    std::vector<double> normed(residual_.size());
    for (int32_t row = 0; row < kRows; ++row) {
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
    std::vector<double> columns(x.size());  // [inputs, rows]
    for (int32_t row = 0; row < kRows; ++row) {
      for (int32_t k = 0; k < inputs_; ++k) {
        columns[size_t(k) * kRows + row] = x[size_t(row) * inputs_ + k];
      }
    }
    std::vector<double> products(size_t{1} * kRows * outputs_);
    for (int32_t output = 0; output < outputs_; ++output) {
      double sums[kRows] = {};
      for (int32_t k = 0; k < inputs_; ++k) {
        const double w = weight_.values()[size_t(output) * inputs_ + k];
        for (int32_t row = 0; row < kRows; ++row) {
          sums[row] += w * columns[size_t(k) * kRows + row];
        }
      }
      for (int32_t row = 0; row < kRows; ++row) {
        products[size_t(row) * outputs_ + output] = sums[row];
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
                                    .x = norm ? nullptr : x.get(),
                                    .residual = norm ? residual.get() : nullptr,
                                    .norm_weight = norm ? norm_on_device_.get() : nullptr,
                                    .epsilon = kEpsilon,
                                    .bias = with_bias ? bias_on_device_.get() : nullptr,
                                    .epilogue = epilogue,
                                    .y = y.get()};
    const Int4Weight weight = weight_.Get();
    const Scratch scratch(weight, limits_, &arguments);
    test::CheckCuda(stream_int4::Run(arguments, weight, limits_, nullptr));
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
  DeviceLimits limits_;
  Weight weight_;
  std::vector<uint16_t> x_;      // [8, inputs]
  std::vector<float> residual_;  // [8, inputs]
  std::vector<float> norm_;
  std::vector<float> bias_;
  std::vector<float> start_;         // [8, outputs], what kAdd adds to
  std::vector<double> products_[2];  // [8, outputs], of x and of the normed residual
  Device<float> bias_on_device_;
  Device<float> norm_on_device_;
};

class StreamInt4Test : public test::GpuTest,
                       public testing::WithParamInterface<std::tuple<GpuType, Case>> {};

std::string CaseName(const testing::TestParamInfo<std::tuple<GpuType, Case>>& test_case) {
  const auto& [type, c] = test_case.param;
  return test::TypeName(type) + c.name;
}

constexpr Case kCases[] = {{"OneTile", 64, 64, 64, false, false},
                           {"Group32", 64, 64, 32, true, false},
                           {"Group32Of576", 576, 192, 32, true, true},
                           {"Group64Of576", 576, 576, 64, false, false},
                           {"Group64Ordered", 576, 192, 64, true, true},
                           {"Group96Of576", 576, 192, 96, true, false},
                           {"Group192Of576", 576, 64, 192, true, false},
                           {"WholeOf576", 576, 576, 576, true, false},
                           {"Group128Of128", 128, 192, 128, false, false},
                           {"Group128", 4096, 4096, 128, false, false},
                           {"Group128Zeros", 4096, 576, 128, true, false},
                           {"Group128Ordered", 4096, 192, 128, false, true},
                           {"Group32Wide", 4096, 576, 32, true, false},
                           {"WholeOf4096", 4096, 192, 4096, true, false},
                           {"WholeOf1024", 1024, 192, 1024, false, false},
                           {"Sliced128", 14336, 64, 128, true, false},
                           {"Symmetric128", 14336, 192, 128, false, false},
                           {"PastTheDigits", 16512, 64, 128, false, false},
                           {"SlicedOrdered", 14336, 192, 128, true, true},
                           {"Sliced64", 14336, 4160, 64, false, false},
                           {"SlicedOddly", 14400, 64, 32, true, false},
                           {"WholeSliced", 14336, 192, 14336, true, false}};

INSTANTIATE_TEST_SUITE_P(Weights, StreamInt4Test,
                         testing::Combine(testing::Values(GpuType::kFp16, GpuType::kBf16),
                                          testing::ValuesIn(kCases)),
                         CaseName);

TEST_P(StreamInt4Test, MatchesDouble) {
  const auto& [type, c] = GetParam();
  Problem problem(type, c);
  const bool small = size_t{1} * c.inputs * c.outputs < 1'000'000;
  for (const int32_t rows :
       small ? std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7, 8} : std::vector<int32_t>{1, 2, 5, 8}) {
    for (const bool norm : {false, true}) {
      for (const Epilogue epilogue :
           {Epilogue::kStore, Epilogue::kFp32, Epilogue::kAdd, Epilogue::kSiluMul}) {
        problem.Check(epilogue, norm, rows, rows % 2 == 0);
      }
    }
  }
}

using StreamInt4ChainTest = test::GpuTest;

// sm_86, sm_89 and sm_120 have 99 KB a block, sm_80 163 KB.
TEST_F(StreamInt4ChainTest, WorksInLessSharedMemory) {
  for (const int kilobytes : {99, 163}) {
    for (const Case& c :
         {Case{"", 4096, 192, 128, true, false}, Case{"", 576, 192, 32, true, true},
          Case{"", 4096, 192, 128, false, false}, Case{"", 14336, 64, 128, false, false},
          Case{"", 14336, 64, 64, false, false}}) {
      Problem problem(GpuType::kFp16, c, kilobytes << 10);
      for (const int32_t rows : {1, 2, 5, 8}) {
        for (const bool norm : {false, true}) {
          problem.Check(Epilogue::kFp32, norm, rows, true);
          problem.Check(Epilogue::kSiluMul, norm, rows, true);
        }
      }
    }
  }
}

TEST_F(StreamInt4ChainTest, ManyUnitsABlock) {
  for (const bool zeros : {false, true}) {
    Problem problem(GpuType::kFp16, {"", 4096, 28672, 128, zeros, false});
    problem.Check(Epilogue::kSiluMul, true, 1, false);
    problem.Check(Epilogue::kStore, false, 8, false);
  }
}

// A single row goes as integers over its largest value.
TEST_F(StreamInt4ChainTest, ALargeInputLeavesTheOthersTheirPrecision) {
  constexpr int32_t kInputs = 4096;
  constexpr int32_t kOutputs = 192;
  constexpr int32_t kLarge = 1234;
  const Weight weight({"", kInputs, kOutputs, 128, false, false});
  const auto multiply = [&](const std::vector<float>& x) {
    const Device<uint16_t> device_x(test::Narrow(GpuType::kFp16, x));
    const Device<float> y(std::vector<float>(kOutputs, 0.0f));
    test::CheckCuda(
        StreamInt4({.rows = 1, .x = device_x.get(), .epilogue = Epilogue::kFp32, .y = y.get()},
                   weight.Get(), nullptr));
    return y.Read();
  };
  std::vector<float> x =
      test::Widen(GpuType::kFp16, test::Narrow(GpuType::kFp16, test::RandomNormal(kInputs, 1)));
  x[kLarge] = 1000;
  const std::vector<float> actual = multiply(x);
  double error = 0, others = 0;
  for (int32_t n = 0; n < kOutputs; ++n) {
    const auto w = [&](int32_t k) { return double{weight.values()[size_t(n) * kInputs + k]}; };
    double sum = 0;
    for (int32_t k = 0; k < kInputs; ++k) {
      sum += k == kLarge ? 0 : w(k) * x[k];
    }
    others += sum * sum;
    error += std::pow(actual[n] - sum - w(kLarge) * x[kLarge], 2);
  }
  EXPECT_LE(std::sqrt(error / others), 2e-4);

  x[kLarge] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(multiply(x), testing::Each(testing::IsNan()));
  EXPECT_THAT(multiply(std::vector<float>(kInputs, 0.0f)), testing::Each(0.0f));
}

// Each product reads what the one before wrote, the scratch is shared and starts overlap: a wait
// left out shows as other bits than with a pause after every product.
TEST_F(StreamInt4ChainTest, OverlappedInAGraphGivesTheBitsOfOneByOne) {
  constexpr int32_t kHidden = 2048;
  constexpr int32_t kWide = 14336;
  constexpr int32_t kLayers = 12;
  const Weight up({"", kHidden, 2 * kWide, 128, false, false});
  const Weight down({"", kWide, kHidden, 64, true, true});
  const Device<float> norm(std::vector<float>(kHidden, 1.0f));
  for (const int32_t rows : {1, 4, 8}) {
    const auto start = test::RandomNormal(size_t{1} * rows * kHidden, 3);
    const Device<float> residual(start);
    const Device<uint16_t> middle(size_t{1} * rows * kWide);
    StreamMatmulArguments first{.type = GpuType::kBf16,
                                .rows = rows,
                                .residual = residual.get(),
                                .norm_weight = norm.get(),
                                .epsilon = kEpsilon,
                                .epilogue = Epilogue::kSiluMul,
                                .y = middle.get()};
    StreamMatmulArguments second{.type = GpuType::kBf16,
                                 .rows = rows,
                                 .x = middle.get(),
                                 .epilogue = Epilogue::kAdd,
                                 .y = residual.get()};
    StreamMatmulScratch sizes[2];
    test::CheckCuda(SizeStreamInt4Scratch(first, up.Get(), &sizes[0]));
    test::CheckCuda(SizeStreamInt4Scratch(second, down.Get(), &sizes[1]));
    const Device<float> partials(std::max(sizes[0].partials, sizes[1].partials));
    const Device<int32_t> counters(
        std::vector<int32_t>(std::max(sizes[0].counters, sizes[1].counters), 0));
    first.partials = second.partials = partials.get();
    first.counters = second.counters = counters.get();
    for (int layer = 0; layer < kLayers; ++layer) {
      test::CheckCuda(StreamInt4(first, up.Get(), nullptr));
      test::CheckCuda(cudaDeviceSynchronize());
      test::CheckCuda(StreamInt4(second, down.Get(), nullptr));
      test::CheckCuda(cudaDeviceSynchronize());
    }
    const std::vector<float> expected = residual.Read();

    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    test::CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    test::CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int layer = 0; layer < kLayers; ++layer) {
      test::CheckCuda(StreamInt4(first, up.Get(), stream));
      test::CheckCuda(StreamInt4(second, down.Get(), stream));
    }
    test::CheckCuda(cudaStreamEndCapture(stream, &graph));
    test::CheckCuda(cudaGraphInstantiate(&executable, graph, 0));
    for (int replay = 0; replay < 5; ++replay) {
      test::CheckCuda(cudaMemcpyAsync(residual.get(), start.data(), start.size() * sizeof(float),
                                      cudaMemcpyHostToDevice, stream));
      test::CheckCuda(cudaGraphLaunch(executable, stream));
      test::CheckCuda(cudaStreamSynchronize(stream));
      const std::vector<float> result = residual.Read();
      const auto different = std::mismatch(result.begin(), result.end(), expected.begin());
      EXPECT_EQ(different.first - result.begin(), std::ssize(result))
          << rows << " rows, replay " << replay << ", " << *different.first << " for "
          << *different.second;
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

TEST_F(StreamInt4ChainTest, RefusesWhatItCannotDo) {
  const Device<uint32_t> data(8 * 16384);
  const auto with = [&](auto change) {
    StreamMatmulArguments arguments{.rows = 1, .x = data.get(), .y = data.get()};
    Int4Weight weight{.tiles = data.get(),
                      .scales = reinterpret_cast<const uint16_t*>(data.get()),
                      .inputs = 192,
                      .outputs = 64,
                      .group_size = 64};
    change(arguments, weight);
    return StreamInt4(arguments, weight, nullptr);
  };
  EXPECT_EQ(with([](auto& a, auto&) { a.rows = 0; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto& a, auto&) { a.rows = kRows + 1; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto&, auto& w) { w.inputs = 96; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto&, auto& w) { w.outputs = 72; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto&, auto& w) { w.group_size = 128; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto&, auto& w) { w.group_size = 16; }), cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto& a, auto& w) {
              w.outputs = 48;
              a.epilogue = Epilogue::kSiluMul;
            }),
            cudaErrorInvalidValue);
  EXPECT_EQ(with([](auto& a, auto& w) {  // too much for a block, and no scratch
              a.rows = 8;
              w.inputs = 16384;
            }),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace ferrite

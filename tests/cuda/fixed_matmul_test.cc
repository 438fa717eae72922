#include "cuda/fixed_matmul.h"

#include <cstring>
#include <optional>
#include <vector>

#include "cuda/stream.h"
#include "gmock/gmock.h"
#include "tests/cuda/gpu_test.h"

namespace ferrite {
namespace {

using test::Device;

struct Sizes {
  int32_t inputs;
  int32_t outputs;
  int32_t most_rows;
  int32_t more_stride = 0;
  int32_t offset = 0;  // of y, elements
};

class FixedMatmulTest : public test::GpuTest, public testing::WithParamInterface<GpuType> {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped()) {
      stream_ = Stream::Create(0).value();
      matmul_ = FixedMatmul::Create(GetParam(), *stream_).value();
    }
  }

  std::optional<Stream> stream_;
  std::optional<FixedMatmul> matmul_;
};

INSTANTIATE_TEST_SUITE_P(Types, FixedMatmulTest, testing::Values(GpuType::kFp16, GpuType::kBf16),
                         [](const auto& type) { return test::TypeName(type.param); });

// Any number of rows, from anywhere among the others: float64's values, and one row's bits.
TEST_P(FixedMatmulTest, RowsMatchDoubleAndHaveTheSameBitsWhereverTheyAre) {
  for (const Sizes& sizes : {Sizes{64, 96, 100}, Sizes{576, 960, 300}, Sizes{1024, 512, 130, 64, 8},
                             Sizes{4096, 1024, 600}, Sizes{40, 8, 17}, Sizes{42, 46, 70}}) {
    for (const bool fp32 : {false, true}) {
      for (const bool add : {false, true}) {
        if (add && !fp32) {
          continue;
        }
        SCOPED_TRACE(testing::Message() << sizes.outputs << " x " << sizes.inputs << ", fp32 "
                                        << fp32 << ", add " << add);
        const int32_t stride = sizes.outputs + sizes.more_stride;
        const size_t element = fp32 ? 4 : 2;
        const auto x_bits =
            test::Narrow(GetParam(), test::RandomNormal(size_t(sizes.most_rows) * sizes.inputs, 1));
        const auto weight_bits =
            test::Narrow(GetParam(), test::RandomNormal(size_t(sizes.outputs) * sizes.inputs, 2));
        const std::vector<float> start =
            test::RandomNormal(size_t(sizes.most_rows) * stride + sizes.offset, 3);
        const Device<uint16_t> x(x_bits);
        const Device<uint16_t> weight(weight_bits);
        const Device<uint8_t> y(start.size() * element);
        GpuMatmulArguments arguments{.rows = sizes.most_rows,
                                     .inputs = sizes.inputs,
                                     .outputs = sizes.outputs,
                                     .weight = weight.get(),
                                     .y = y.get() + sizes.offset * element,
                                     .y_stride = stride,
                                     .fp32 = fp32,
                                     .add = add};
        ASSERT_EQ(matmul_->Prepare(arguments), absl::OkStatus());
        // Rows [first, first + count), to where they belong.
        const auto run = [&](int32_t first, int32_t count) {
          test::CheckCuda(cudaMemset(y.get(), 0xFF, y.size()));
          if (add) {
            test::CheckCuda(cudaMemcpy(y.get(), start.data(), y.size(), cudaMemcpyHostToDevice));
          }
          test::CheckCuda(cudaDeviceSynchronize());  // the product's stream does not wait for these
          GpuMatmulArguments some = arguments;
          some.rows = count;
          some.x = x.get() + size_t(first) * sizes.inputs;
          some.y = static_cast<uint8_t*>(arguments.y) + size_t(first) * stride * element;
          EXPECT_EQ(matmul_->Run(some), absl::OkStatus());
          EXPECT_EQ(stream_->Synchronize(), absl::OkStatus());
          return y.Read();
        };
        const std::vector<uint8_t> all = run(0, sizes.most_rows);
        const auto row_of = [&](const std::vector<uint8_t>& from, int32_t row) {
          return from.data() + (sizes.offset + size_t(row) * stride) * element;
        };
        for (const int32_t count : {1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 65, 128, 129, 599}) {
          for (const int32_t first : {0, 1, sizes.most_rows - count}) {
            if (first < 0 || first + count > sizes.most_rows) {
              continue;
            }
            const std::vector<uint8_t> some = run(first, count);
            for (int32_t row = first; row < first + count; ++row) {
              ASSERT_EQ(std::memcmp(row_of(some, row), row_of(all, row), sizes.outputs * element),
                        0)
                  << "row " << row << " among " << count << " from " << first;
            }
          }
        }
        std::vector<float> actual;
        std::vector<double> expected;
        const std::vector<float> x_values = test::Widen(GetParam(), x_bits);
        const std::vector<float> weights = test::Widen(GetParam(), weight_bits);
        for (const int32_t row : {0, sizes.most_rows / 2, sizes.most_rows - 1}) {
          std::vector<uint16_t> halves(sizes.outputs);
          std::vector<float> floats(sizes.outputs);
          std::memcpy(fp32 ? static_cast<void*>(floats.data()) : halves.data(), row_of(all, row),
                      sizes.outputs * element);
          if (!fp32) {
            floats = test::Widen(GetParam(), halves);
          }
          actual.insert(actual.end(), floats.begin(), floats.end());
          for (int32_t output = 0; output < sizes.outputs; ++output) {
            double sum = add ? start[sizes.offset + size_t(row) * stride + output] : 0;
            for (int32_t k = 0; k < sizes.inputs; ++k) {
              sum += double{x_values[size_t(row) * sizes.inputs + k]} *
                     weights[size_t(output) * sizes.inputs + k];
            }
            expected.push_back(sum);
          }
        }
        EXPECT_LE(test::RelativeError(actual, expected), test::Tolerance(GetParam()));
      }
    }
  }
}

TEST_P(FixedMatmulTest, WhatWasNotPreparedIsRefused) {
  const absl::Status status =
      matmul_->Run({.rows = 1, .inputs = 64, .outputs = 32, .y_stride = 32});
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(status.message(), testing::HasSubstr("[32, 64]"));
}

}  // namespace
}  // namespace ferrite

#include "cuda/product_ways.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda/products.h"

namespace ferrite {
namespace {

TEST(ProductWaysTest, EveryNumberOfRowsHasASizeNotFarAbove) {
  EXPECT_THAT(Products::RowSizes(1), testing::ElementsAre(1));
  EXPECT_THAT(Products::RowSizes(20), testing::ElementsAre(8, 16, 20));
  const std::vector<int32_t> sizes = Products::RowSizes(2048);
  EXPECT_LE(sizes.size(), 40);
  EXPECT_EQ(sizes.back(), 2048);
  EXPECT_TRUE(std::ranges::is_sorted(sizes));
  for (int32_t rows = 1; rows <= 2048; ++rows) {
    const int32_t size = *std::ranges::lower_bound(sizes, rows);
    EXPECT_LT(size - rows, std::max(8, rows / 3)) << rows;
  }
}

TEST(ProductWaysTest, WeightsAreDequantizedInFewPartsThatFit) {
  constexpr int64_t kMost = kMaxDequantizedBytes / 2;  // elements of 16 bits
  EXPECT_EQ(DequantizedOutputs(4096, 4096), 4096);     // all at once
  for (const int64_t inputs : {576, 4096, 14336}) {
    for (const int64_t outputs : {64, 6144, 28672, 128256}) {
      const int64_t step = DequantizedOutputs(inputs, outputs);
      EXPECT_LE(step * inputs, kMost) << inputs << " x " << outputs;
      EXPECT_TRUE(step % 64 == 0 || step == outputs) << inputs << " x " << outputs;
      // As few times as units of 64 outputs allow.
      const int64_t times = (outputs + step - 1) / step;
      const int64_t most = kMost / inputs / 64 * 64;
      EXPECT_EQ(times, (outputs + most - 1) / most) << inputs << " x " << outputs;
    }
  }
}

}  // namespace
}  // namespace ferrite

#include "client/bench_arrivals.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace ferrite {
namespace {

std::vector<double> Gaps(double rate, uint64_t seed, int count) {
  PoissonArrivals arrivals(rate, seed);
  std::vector<double> gaps;
  double before = 0;
  for (int i = 0; i < count; ++i) {
    const double now = arrivals.Next();
    gaps.push_back(now - before);
    before = now;
  }
  return gaps;
}

// Of n exponential gaps, the mean has a standard error of (1 / rate) / sqrt(n).
TEST(PoissonArrivalsTest, HaveTheMeanRate) {
  constexpr int kCount = 100000;
  for (const double rate : {0.5, 40.0, 10000.0}) {
    PoissonArrivals arrivals(rate, 7);
    double last = 0;
    for (int i = 0; i < kCount; ++i) last = arrivals.Next();
    EXPECT_NEAR(last * rate / kCount, 1, 4 / std::sqrt(kCount)) << rate;
  }
}

// The exponential distribution's function, 1 - exp(-rate t), by Kolmogorov's and Smirnov's test:
// 1.95 / sqrt(n) is exceeded once in a thousand seeds.
TEST(PoissonArrivalsTest, HaveExponentialGaps) {
  constexpr int kCount = 20000;
  std::vector<double> gaps = Gaps(3, 1, kCount);
  std::sort(gaps.begin(), gaps.end());
  double worst = 0;
  for (int i = 0; i < kCount; ++i) {
    const double expected = 1 - std::exp(-3 * gaps[static_cast<size_t>(i)]);
    worst = std::max({worst, std::abs(expected - i / double{kCount}),
                      std::abs(expected - (i + 1) / double{kCount})});
  }
  EXPECT_LT(worst, 1.95 / std::sqrt(kCount));
}

TEST(PoissonArrivalsTest, DependOnTheSeed) {
  EXPECT_EQ(Gaps(2, 5, 100), Gaps(2, 5, 100));
  EXPECT_NE(Gaps(2, 5, 100), Gaps(2, 6, 100));
  EXPECT_NE(Gaps(2, 5, 100), Gaps(2, 5 + (uint64_t{1} << 40), 100));
}

TEST(PoissonArrivalsTest, NeverGoBack) {
  const std::vector<double> gaps = Gaps(1e6, 3, 10000);
  EXPECT_GE(*std::min_element(gaps.begin(), gaps.end()), 0);
}

}  // namespace
}  // namespace ferrite

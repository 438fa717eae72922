#include "client/statistics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace ferrite {
namespace {

std::vector<double> OneTo(int n) {
  std::vector<double> samples(static_cast<size_t>(n));
  std::iota(samples.begin(), samples.end(), 1.0);
  return samples;
}

TEST(StatisticsTest, PercentilesOfOneToHundredAreThemselves) {
  for (int percent = 1; percent <= 100; ++percent) {
    EXPECT_EQ(NearestRank(OneTo(100), percent), percent);
  }
  EXPECT_EQ(NearestRank(OneTo(100), 0), 1);
}

// The worked example of https://en.wikipedia.org/wiki/Percentile, nearest-rank method.
TEST(StatisticsTest, FollowsTheWorkedExample) {
  const std::vector<double> sorted = {15, 20, 35, 40, 50};
  EXPECT_EQ(NearestRank(sorted, 5), 15);
  EXPECT_EQ(NearestRank(sorted, 30), 20);
  EXPECT_EQ(NearestRank(sorted, 40), 20);
  EXPECT_EQ(NearestRank(sorted, 50), 35);
  EXPECT_EQ(NearestRank(sorted, 100), 50);
}

// Of 1..n the p-th percentile is ceil(p n / 100), here counted up instead of divided.
TEST(StatisticsTest, IsTheLeastSampleThatEnoughDoNotExceed) {
  for (int n = 1; n <= 60; ++n) {
    for (int percent = 1; percent <= 100; ++percent) {
      int expected = 1;
      while (expected * 100 < percent * n) ++expected;
      EXPECT_EQ(NearestRank(OneTo(n), percent), expected) << n << " samples, p" << percent;
    }
  }
}

TEST(StatisticsTest, SummarizesInAnyOrder) {
  std::vector<double> samples = OneTo(2000);
  std::shuffle(samples.begin(), samples.end(), std::mt19937(7));
  const Summary summary = Summarize(samples);
  EXPECT_EQ(summary.count, 2000);
  EXPECT_DOUBLE_EQ(summary.mean, 1000.5);  // (n + 1) / 2
  EXPECT_EQ(summary.min, 1);
  EXPECT_EQ(summary.p50, 1000);
  EXPECT_EQ(summary.p90, 1800);
  EXPECT_EQ(summary.p95, 1900);
  EXPECT_EQ(summary.p99, 1980);
  EXPECT_EQ(summary.max, 2000);
}

TEST(StatisticsTest, OneSampleIsEveryPercentile) {
  const Summary summary = Summarize({0.25});
  EXPECT_EQ(summary.count, 1);
  for (const double value : {summary.mean, summary.min, summary.p50, summary.p90, summary.p95,
                             summary.p99, summary.max}) {
    EXPECT_EQ(value, 0.25);
  }
}

TEST(StatisticsTest, NoSamplesAreZeros) {
  const Summary summary = Summarize({});
  EXPECT_EQ(summary.count, 0);
  EXPECT_EQ(summary.max, 0);
}

}  // namespace
}  // namespace ferrite

// What many samples of one quantity say together.
#pragma once

#include <cstdint>
#include <vector>

namespace ferrite {

// In the unit of the samples. All 0 if there are none.
struct Summary {
  int64_t count = 0;
  double mean = 0;
  double min = 0;
  double p50 = 0;
  double p90 = 0;
  double p95 = 0;
  double p99 = 0;
  double max = 0;
};

// The least sample that at least `percent` % of all samples do not exceed: the one of rank
// ceil(percent * n / 100), exact and never interpolated (the nearest-rank method of
// https://en.wikipedia.org/wiki/Percentile). `sorted` is ascending and not empty; `percent` is from
// 0 to 100, and 0 is the least sample.
double NearestRank(const std::vector<double>& sorted, int percent);

Summary Summarize(std::vector<double> samples);

}  // namespace ferrite

#include "client/statistics.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

namespace ferrite {

double NearestRank(const std::vector<double>& sorted, int percent) {
  // In integers: in floating point 0.95 * 20 may round up to a rank of 20.
  const size_t rank = (static_cast<size_t>(percent) * sorted.size() + 99) / 100;
  return sorted[std::max<size_t>(rank, 1) - 1];
}

Summary Summarize(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  Summary summary;
  summary.count = static_cast<int64_t>(samples.size());
  summary.mean =
      std::accumulate(samples.begin(), samples.end(), 0.0) / static_cast<double>(samples.size());
  summary.min = samples.front();
  summary.p50 = NearestRank(samples, 50);
  summary.p90 = NearestRank(samples, 90);
  summary.p95 = NearestRank(samples, 95);
  summary.p99 = NearestRank(samples, 99);
  summary.max = samples.back();
  return summary;
}

}  // namespace ferrite

#include "engine/histogram.h"

#include <numeric>

namespace ferrite {

uint64_t HistogramSnapshot::count() const {
  return std::accumulate(counts.begin(), counts.end(), uint64_t{0});
}

HistogramSnapshot Histogram::snapshot() const {
  HistogramSnapshot snapshot;
  snapshot.sum = sum_.value();
  for (size_t range = 0; range <= bounds_.size(); ++range) {
    snapshot.counts.push_back(counts_[range].value());
  }
  return snapshot;
}

}  // namespace ferrite

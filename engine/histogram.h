// Counts for metrics, written by one thread and read by any.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ferrite {

// A number that one thread changes; no locked instruction is needed for that. The others may read.
template <typename T>
class SingleWriter {
 public:
  void Add(T amount) {
    value_.store(value_.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
  }
  T value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<T> value_{0};
};

struct HistogramSnapshot {
  std::vector<uint64_t> counts;  // [bounds + 1], of each range alone
  double sum = 0;
  uint64_t count() const;
};

// Values by range: bounds[i - 1] < value <= bounds[i], and what is above all bounds. One thread
// observes, and allocates nothing; any may read.
class Histogram {
 public:
  static constexpr size_t kMaxBounds = 24;

  // `bounds` rise, are at most kMaxBounds, and outlive the histogram.
  explicit Histogram(std::span<const double> bounds) : bounds_(bounds) {}

  // `times` values of the same size.
  void Observe(double value, uint64_t times = 1) {
    size_t range = 0;
    while (range < bounds_.size() && value > bounds_[range]) {
      ++range;
    }
    counts_[range].Add(times);
    sum_.Add(value * static_cast<double>(times));
  }

  std::span<const double> bounds() const { return bounds_; }
  HistogramSnapshot snapshot() const;

 private:
  const std::span<const double> bounds_;
  std::array<SingleWriter<uint64_t>, kMaxBounds + 1> counts_;
  SingleWriter<double> sum_;
};

}  // namespace ferrite

#include "server/metric_families.h"

#include <cassert>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_split.h"
#include "server/metric_table.h"

namespace ferrite {
namespace {

prometheus::MetricType ToPrometheus(MetricType type) {
  switch (type) {
    case MetricType::kCounter:
      return prometheus::MetricType::Counter;
    case MetricType::kGauge:
      return prometheus::MetricType::Gauge;
    case MetricType::kHistogram:
      return prometheus::MetricType::Histogram;
  }
  return prometheus::MetricType::Untyped;
}

}  // namespace

MetricFamilies::MetricFamilies() {
  for (const Metric& metric : MetricTable()) {
    families_.push_back({metric.name, metric.help, ToPrometheus(metric.type), {}});
  }
}

prometheus::ClientMetric& MetricFamilies::NewMetric(
    std::string_view name, std::initializer_list<std::string_view> labels) {
  const Metric* const metric = FindMetric(name);
  assert(metric != nullptr);
  const std::vector<std::string> names = absl::StrSplit(metric->labels, ", ", absl::SkipEmpty());
  assert(names.size() == labels.size());
  prometheus::ClientMetric& added =
      families_[static_cast<size_t>(metric - MetricTable().data())].metric.emplace_back();
  auto value = labels.begin();
  for (const std::string& label : names) {
    added.label.push_back({label, std::string(*value++)});
  }
  return added;
}

void MetricFamilies::Add(std::string_view name, std::initializer_list<std::string_view> labels,
                         double value) {
  prometheus::ClientMetric& added = NewMetric(name, labels);
  switch (FindMetric(name)->type) {
    case MetricType::kCounter:
      added.counter.value = value;
      break;
    case MetricType::kGauge:
      added.gauge.value = value;
      break;
    default:
      assert(false);
  }
}

void MetricFamilies::Add(std::string_view name, std::initializer_list<std::string_view> labels,
                         const Histogram& histogram) {
  assert(FindMetric(name)->bounds.data() == histogram.bounds().data());
  const HistogramSnapshot snapshot = histogram.snapshot();
  auto& added = NewMetric(name, labels).histogram;
  added.sample_count = snapshot.count();
  added.sample_sum = snapshot.sum;
  uint64_t cumulative = 0;
  for (size_t i = 0; i < snapshot.counts.size(); ++i) {
    cumulative += snapshot.counts[i];
    const bool last = i == histogram.bounds().size();
    added.bucket.push_back(
        {cumulative, last ? std::numeric_limits<double>::infinity() : histogram.bounds()[i]});
  }
}

std::vector<prometheus::MetricFamily> MetricFamilies::Take() {
  std::vector<prometheus::MetricFamily> taken;
  for (prometheus::MetricFamily& family : families_) {
    if (!family.metric.empty()) {
      taken.push_back(std::move(family));
    }
  }
  families_.clear();
  return taken;
}

}  // namespace ferrite

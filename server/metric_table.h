// The one table of metrics. What is exported, and docs/metrics.md, follow from it.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace ferrite {

enum class MetricType { kCounter, kGauge, kHistogram };

struct Metric {
  const char* name;
  MetricType type;
  const char* unit;    // of its value: "seconds", "tokens"; "" for a plain count
  const char* labels;  // in the order in which they are written, separated by ", "
  const char* help;
  std::span<const double> bounds = {};  // of a histogram's buckets; the one to infinity is implied
};

// In the order in which they are exported.
std::span<const Metric> MetricTable();

// Null if there is none of this name.
const Metric* FindMetric(std::string_view name);

// docs/metrics.md.
std::string MetricDocs();

// The same as JSON, for programs: [{"name", "type", "unit", "labels", "help", "buckets"}].
std::string MetricJson();

}  // namespace ferrite

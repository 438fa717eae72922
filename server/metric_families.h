// The values of one scrape, by the table of metrics.
#pragma once

#include <prometheus/metric_family.h>

#include <initializer_list>
#include <string_view>
#include <vector>

#include "engine/histogram.h"

namespace ferrite {

// Takes values in any order and gives families in that of the table. Thread-compatible.
class MetricFamilies {
 public:
  MetricFamilies();

  // A value of the counter or gauge `name`, with the values of its labels in the table's order. A
  // name, type or number of labels that is not the table's is an error of ours: it asserts.
  void Add(std::string_view name, std::initializer_list<std::string_view> labels, double value);
  // The same for a histogram.
  void Add(std::string_view name, std::initializer_list<std::string_view> labels,
           const Histogram& histogram);

  // Families without values are left out.
  std::vector<prometheus::MetricFamily> Take();

 private:
  prometheus::ClientMetric& NewMetric(std::string_view name,
                                      std::initializer_list<std::string_view> labels);

  std::vector<prometheus::MetricFamily> families_;  // by entry of the table
};

}  // namespace ferrite

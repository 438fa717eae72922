#include "server/metric_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "absl/strings/str_split.h"
#include "engine/histogram.h"
#include "server/metric_families.h"

namespace ferrite {
namespace {

using ::testing::EndsWith;
using ::testing::IsSupersetOf;
using ::testing::MatchesRegex;
using ::testing::Not;

std::vector<std::string> Labels(const Metric& metric) {
  return absl::StrSplit(metric.labels, ", ", absl::SkipEmpty());
}

TEST(MetricTableTest, DocsAreCurrent) {
  std::ifstream file(FERRITE_SOURCE_DIR "/docs/metrics.md");
  const std::string docs{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  EXPECT_EQ(docs, MetricDocs()) << "build metric_docs and run: metric_docs > docs/metrics.md";
}

// https://prometheus.io/docs/practices/naming/
TEST(MetricTableTest, NamesFollowPrometheusConventions) {
  std::set<std::string> names;
  for (const Metric& metric : MetricTable()) {
    const std::string name = metric.name;
    EXPECT_TRUE(names.insert(name).second) << name << " is there twice";
    EXPECT_GT(std::string(metric.help).size(), 3u) << name;
    EXPECT_THAT(name, MatchesRegex("ferrite_[a-z][a-z0-9_]*[a-z]"));
    if (metric.type == MetricType::kCounter) {
      EXPECT_THAT(name, EndsWith("_total"));
    } else {
      EXPECT_THAT(name, Not(EndsWith("_total")));
    }
    for (const char* suffix : {"_count", "_sum", "_bucket"}) {
      EXPECT_THAT(name, Not(EndsWith(suffix)));
    }
    if (const std::string unit = metric.unit; !unit.empty()) {
      EXPECT_THAT(name, ::testing::AnyOf(EndsWith("_" + unit), EndsWith("_" + unit + "_total")));
      EXPECT_THAT(unit, ::testing::AnyOf("seconds", "tokens", "ratio", "bytes"));
    }
    EXPECT_EQ(metric.type == MetricType::kHistogram, !metric.bounds.empty()) << name;
    EXPECT_LE(metric.bounds.size(), Histogram::kMaxBounds) << name;
  }
  // A family of a counter and one of another type would clash in OpenMetrics.
  for (const std::string& name : names) {
    EXPECT_FALSE(name.ends_with("_total") && names.contains(name.substr(0, name.size() - 6)))
        << name;
  }
}

// Each has few values, which nothing that a client sends can add to.
TEST(MetricTableTest, LabelsAreBounded) {
  const std::vector<std::string> bounded = {
      "model", "worker",       "rpc",    "code",         "reason",  "kind",    "mode",
      "phase", "architecture", "device", "compute_type", "version", "compiler"};
  for (const Metric& metric : MetricTable()) {
    EXPECT_THAT(bounded, IsSupersetOf(Labels(metric))) << metric.name;
  }
}

TEST(MetricTableTest, JsonHasEveryMetric) {
  const nlohmann::json list = nlohmann::json::parse(MetricJson());
  ASSERT_EQ(list.size(), MetricTable().size());
  for (size_t i = 0; i < list.size(); ++i) {
    const Metric& metric = MetricTable()[i];
    EXPECT_EQ(list[i]["name"], metric.name);
    EXPECT_EQ(list[i]["labels"].get<std::vector<std::string>>(), Labels(metric));
    EXPECT_EQ(list[i]["buckets"].size(), metric.bounds.size());
  }
}

TEST(MetricFamiliesTest, GivesValuesInTheTablesOrder) {
  const Metric& metric = *FindMetric("ferrite_step_tokens");
  Histogram histogram(metric.bounds);
  histogram.Observe(3);
  histogram.Observe(4);
  histogram.Observe(1e9);
  MetricFamilies families;
  families.Add("ferrite_step_tokens", {"m", "0"}, histogram);
  families.Add("ferrite_requests_running", {"m", "1"}, 7);
  const std::vector<prometheus::MetricFamily> taken = families.Take();
  ASSERT_EQ(taken.size(), 2u);
  EXPECT_EQ(taken[0].name, "ferrite_requests_running");
  EXPECT_EQ(taken[0].metric[0].gauge.value, 7);
  ASSERT_EQ(taken[0].metric[0].label.size(), 2u);
  EXPECT_EQ(taken[0].metric[0].label[1].name, "worker");
  EXPECT_EQ(taken[0].metric[0].label[1].value, "1");
  const auto& values = taken[1].metric[0].histogram;
  EXPECT_EQ(values.sample_count, 3u);
  ASSERT_EQ(values.bucket.size(), metric.bounds.size() + 1);
  EXPECT_EQ(values.bucket[1].cumulative_count, 0u);  // to 2
  EXPECT_EQ(values.bucket[2].cumulative_count, 2u);  // to 4
  EXPECT_EQ(values.bucket.back().cumulative_count, 3u);
  EXPECT_TRUE(std::isinf(values.bucket.back().upper_bound));
}

}  // namespace
}  // namespace ferrite

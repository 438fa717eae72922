// Prometheus' text format, read as strictly as its page says
// (https://prometheus.io/docs/instrumenting/exposition_formats/), and the HTTP that brings it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ferrite::test {

struct TextFamily {
  std::string type;
  std::string help;
  // By suffix ("" or "_bucket", "_sum", "_count") and labels as they stand: `a="b",c="d"`.
  std::map<std::string, std::map<std::string, double>> samples;
};

using TextMetrics = std::map<std::string, TextFamily>;

// InvalidArgument, with the line, for whatever is not as it must be: the order of HELP, TYPE and
// samples, a family or a series that comes twice, names, escapes, numbers, and histograms whose
// buckets do not rise to their count.
absl::StatusOr<TextMetrics> ParseMetrics(const std::string& text);

// `a="b",c="d"` by name. The labels must be well formed.
std::map<std::string, std::string> ParseLabels(const std::string& labels);

// The body of GET `path` on 127.0.0.1; Unavailable if it cannot be had, NotFound and the like by
// its status.
absl::StatusOr<std::string> HttpGet(int port, const std::string& path);

}  // namespace ferrite::test

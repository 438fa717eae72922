// What a sweep of `ferrite bench` prints and draws.
#pragma once

#include <nlohmann/json.hpp>

#include <ostream>
#include <string>
#include <vector>

#include "client/bench_report.h"

namespace ferrite {

// The model and the names of the columns; then a row a point.
void PrintSweepHead(const BenchReport& report, std::ostream& out);
void PrintSweepRow(const BenchReport& point, std::ostream& out);

// {"sweep": [...]}, with the object of a single run for each point.
nlohmann::ordered_json SweepToJson(const std::vector<BenchReport>& points);

// SVG: output tokens a second against the time to the first token and the inter-token time, p50 and
// p99, each point with its concurrency or rate.
std::string PlotOfSweep(const std::vector<BenchReport>& points);

}  // namespace ferrite

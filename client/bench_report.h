// What `ferrite bench` prints.
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "client/bench_options.h"
#include "client/connection.h"
#include "client/load.h"
#include "ferrite/v1/control.pb.h"

namespace ferrite {

// Requests that were sent again alone, after the load.
struct BenchCheck {
  struct Difference {
    int64_t index = 0;  // of the request
    int64_t place = 0;  // of its first other token id
  };

  int64_t compared = 0;
  std::vector<Difference> different;
  grpc::Status failure;  // the commonest of those alone
};

// What one load gave.
struct BenchReport {
  BenchOptions options;
  ConnectionOptions connection;
  v1::GetServerInfoResponse server;
  v1::GetModelInfoResponse model;
  LoadResult load;
  bool interrupted = false;
  BenchCheck check;
};

// Seconds, of completed requests.
std::vector<double> EndToEnd(const LoadResult& load);

// Output tokens a second.
double OutputRate(const LoadResult& load);

// Completed requests that meet the objective, which there is.
int64_t NumGood(const BenchReport& report);

// Settings, counts, rates a second and times in milliseconds; docs/api.md lists the members.
nlohmann::ordered_json ToJson(const BenchReport& report);

// The same for people.
void PrintTable(const BenchReport& report, std::ostream& out);

// Parts of it: the model and its workers; failures and differences, a line each.
void PrintModel(const BenchReport& report, std::ostream& out);
void PrintFailures(const BenchReport& report, std::ostream& out);

// A line for a terminal, 79 columns or fewer, such as
// "bench [=======>            ]  12/64  3.1 s  412 tokens/s"; where a duration ends the load, the
// bar is of seconds: "bench [=======>            ]  12/60 s  31 done  412 tokens/s".
std::string ProgressLine(const std::string& phase, const LoadProgress& progress, int64_t count,
                         double duration_seconds = std::numeric_limits<double>::infinity());

}  // namespace ferrite

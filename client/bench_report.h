// What `ferrite bench` prints.
#pragma once

#include <nlohmann/json.hpp>

#include <ostream>
#include <string>

#include "client/bench.h"
#include "client/load.h"
#include "ferrite/v1/control.pb.h"

namespace ferrite {

struct BenchReport {
  BenchOptions options;
  ConnectionOptions connection;
  v1::GetServerInfoResponse server;
  v1::GetModelInfoResponse model;
  LoadResult load;
  bool interrupted = false;
  int64_t compared = 0;  // requests whose token ids were compared with those of the same run alone
  int64_t different_from_solo = 0;
};

// Settings, counts, rates a second and times in milliseconds; docs/api.md lists the members.
nlohmann::ordered_json ToJson(const BenchReport& report);

// The same for people.
void PrintTable(const BenchReport& report, std::ostream& out);

// A line for a terminal, 79 columns or fewer, such as
// "bench [=======>            ]  12/64  3.1 s  412 tokens/s".
std::string ProgressLine(const std::string& phase, const LoadProgress& progress, int64_t count);

}  // namespace ferrite

// `ferrite bench`.
#pragma once

#include <cstdint>

#include "client/bench_requests.h"
#include "client/connection.h"
#include "client/console.h"

namespace CLI {
class App;
}  // namespace CLI

namespace ferrite {

struct BenchOptions {
  BenchWorkload workload;
  int32_t concurrency = 1;
  int64_t count = 16;
  int64_t warm_up = 0;
  int64_t check = 0;
  int32_t threads = 1;
  bool json = false;
};

CLI::App* AddBench(CLI::App* app, BenchOptions* options);

// Asks the server for its model, runs `check` prompts alone, `warm_up` requests and the measured
// ones, and prints a table or one JSON object. Returns 0; kExitUsage for options that do not fit
// each other or the model; CANCELLED's code after Ctrl-C, with what was measured until then; or
// the code of the commonest failure. A failure before the measured requests ends it at once.
int RunBench(const BenchOptions& options, const ConnectionOptions& connection_options,
             const Console& console);

}  // namespace ferrite

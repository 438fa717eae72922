// `ferrite bench`.
#pragma once

#include "client/bench_options.h"
#include "client/connection.h"
#include "client/console.h"

namespace ferrite {

// Asks the server for its model; for each point of the sweep, or once, runs `warm_up` requests and
// the measured ones, and sends some of those again alone; and prints a table or one JSON object.
// Returns 0; kExitUsage for options or a dataset that do not fit each other or the model;
// CANCELLED's code after Ctrl-C, with what was measured until then; DATA_LOSS's if an answer was
// another one alone; or the code of the commonest failure. A failure before the measured requests
// ends it at once.
int RunBench(const BenchOptions& options, const ConnectionOptions& connection_options,
             const Console& console);

}  // namespace ferrite

// The lengths of a dataset in the tokens of a server's model.
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "client/bench_workload.h"
#include "client/connection.h"

namespace ferrite {

// The lengths of `most` entries, or of all if there are fewer, shuffled by the workload's seed.
// The server counts the tokens of texts, without special tokens; `on_entry` is told how many
// entries are done, and what it says whether to go on: CANCELLED if not, or the status of a call.
grpc::Status MeasureDataset(const BenchWorkload& workload, Dataset dataset, int64_t most,
                            Connection* connection,
                            const std::function<bool(int64_t done, int64_t of)>& on_entry,
                            std::vector<BenchLengths>* lengths);

}  // namespace ferrite

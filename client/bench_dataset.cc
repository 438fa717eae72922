#include "client/bench_dataset.h"

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "ferrite/v1/inference.grpc.pb.h"

namespace ferrite {
namespace {

// Fisher and Yates, by hand: the standard leaves the order of its shuffle to the library.
void Shuffle(uint64_t seed, std::vector<DatasetEntry>* entries) {
  std::mt19937_64 random(seed);
  for (size_t i = entries->size(); i > 1; --i)
    std::swap((*entries)[i - 1], (*entries)[random() % i]);
}

grpc::Status CountTokens(const BenchWorkload& workload, const std::string& text,
                         v1::Inference::Stub* stub, Connection* connection, int32_t* tokens) {
  v1::TokenizeRequest request;
  if (workload.model) request.set_model(*workload.model);
  request.set_text(text);
  request.set_add_special_tokens(false);
  v1::TokenizeResponse response;
  Call call(connection);
  const grpc::Status status = stub->Tokenize(call.context(), request, &response);
  *tokens = std::max(response.token_ids_size(), 1);
  return status;
}

}  // namespace

grpc::Status MeasureDataset(const BenchWorkload& workload, Dataset dataset, int64_t most,
                            Connection* connection,
                            const std::function<bool(int64_t done, int64_t of)>& on_entry,
                            std::vector<BenchLengths>* lengths) {
  Shuffle(workload.seed, &dataset.entries);
  const auto size = static_cast<int64_t>(dataset.entries.size());
  dataset.entries.resize(static_cast<size_t>(std::min(size, most)));
  const auto stub = v1::Inference::NewStub(connection->channel());
  for (DatasetEntry& entry : dataset.entries) {
    if (!entry.prompt.empty()) {
      grpc::Status status =
          CountTokens(workload, entry.prompt, stub.get(), connection, &entry.lengths.prompt_tokens);
      if (status.ok()) {
        status = CountTokens(workload, entry.answer, stub.get(), connection,
                             &entry.lengths.output_tokens);
      }
      if (!status.ok()) return status;
    }
    lengths->push_back(entry.lengths);
    if (!on_entry(static_cast<int64_t>(lengths->size()),
                  static_cast<int64_t>(dataset.entries.size()))) {
      return grpc::Status(grpc::StatusCode::CANCELLED, "interrupted before anything was measured");
    }
  }
  return grpc::Status::OK;
}

}  // namespace ferrite

#include "client/load_result.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace ferrite {
namespace {

// The order in which requests are kept as samples: the bits of a request's number, mixed by
// splitmix64 (https://prng.di.unimi.it/splitmix64.c), so that those kept are from all over the run.
uint64_t SampleOrder(uint64_t number) {
  uint64_t mixed = number + 0x9e3779b97f4a7c15;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
  return mixed ^ (mixed >> 31);
}

void TrimSamples(int64_t most, std::map<uint64_t, LoadSample>* samples) {
  while (static_cast<int64_t>(samples->size()) > most) samples->erase(std::prev(samples->end()));
}

template <typename T>
void Append(std::vector<T> from, std::vector<T>* to) {
  if (to->empty()) {
    *to = std::move(from);
    return;
  }
  to->insert(to->end(), from.begin(), from.end());
}

}  // namespace

int64_t LoadResult::failed() const {
  int64_t sum = 0;
  for (const auto& [code, of_code] : failures) sum += of_code.count;
  return sum;
}

grpc::Status LoadResult::worst() const {
  const auto commonest = std::max_element(
      failures.begin(), failures.end(),
      [](const auto& a, const auto& b) { return a.second.count < b.second.count; });
  if (commonest == failures.end()) return grpc::Status::OK;
  return grpc::Status(commonest->first, commonest->second.message);
}

void KeepSample(uint64_t number, LoadSample sample, int64_t most,
                std::map<uint64_t, LoadSample>* samples) {
  (*samples)[SampleOrder(number)] = std::move(sample);
  TrimSamples(most, samples);
}

void Merge(LoadResult from, int64_t num_samples, LoadResult* to) {
  to->started += from.started;
  to->completed += from.completed;
  to->cut_short += from.cut_short;
  for (auto& [code, failures] : from.failures) {
    LoadFailures& merged = to->failures[code];
    if (merged.count == 0) merged.message = std::move(failures.message);
    merged.count += failures.count;
    Append(std::move(failures.seconds), &merged.seconds);
  }
  to->input_tokens += from.input_tokens;
  to->cached_tokens += from.cached_tokens;
  to->output_tokens += from.output_tokens;
  to->token_messages += from.token_messages;
  Append(std::move(from.first_token), &to->first_token);
  Append(std::move(from.message_gaps), &to->message_gaps);
  Append(std::move(from.inter_token), &to->inter_token);
  Append(std::move(from.send_lag), &to->send_lag);
  Append(std::move(from.times), &to->times);
  to->samples.merge(from.samples);
  TrimSamples(num_samples, &to->samples);
}

}  // namespace ferrite

#include "engine/worker_choice.h"

#include <algorithm>
#include <cstdint>
#include <tuple>

namespace ferrite {

std::optional<size_t> ChooseWorker(std::span<const std::unique_ptr<Worker>> workers,
                                   double stuck_step_seconds,
                                   std::span<const std::unique_ptr<Sequence>> sequences) {
  const auto requests = std::max<int32_t>(1, static_cast<int32_t>(sequences.size()));
  int64_t prompt_tokens = 0;
  for (const std::unique_ptr<Sequence>& sequence : sequences) {
    prompt_tokens += sequence->num_waiting_tokens();
  }
  std::optional<size_t> best;
  std::tuple<bool, int64_t> lowest;
  for (size_t i = 0; i < workers.size(); ++i) {
    const WorkerLoad load = workers[i]->load();
    if (load.failed || load.step_age_seconds >= stuck_step_seconds) {
      continue;
    }
    if (workers.size() == 1) {
      return i;
    }
    int64_t tokens = load.tokens_outstanding + prompt_tokens;
    for (const std::unique_ptr<Sequence>& sequence : sequences) {
      tokens -= workers[i]->CachedTokens(*sequence);
    }
    const bool full = !workers[i]->CheckRoom(requests, prompt_tokens).ok();
    if (const std::tuple rank = {full, tokens}; !best.has_value() || rank < lowest) {
      best = i;
      lowest = rank;
    }
  }
  return best;
}

}  // namespace ferrite

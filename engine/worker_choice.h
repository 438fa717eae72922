// Which worker gets a request.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "engine/sequence.h"
#include "engine/worker.h"

namespace ferrite {

// The worker with the fewest tokens to compute once it has taken `sequences` (those of one call; or
// none, which stand for a request of which nothing is known yet): what is outstanding there, and of
// their prompts what it has not cached. Those whose queue has no room for them come last; nothing
// if all have failed, or are stuck for `stuck_step_seconds`. Thread-safe.
std::optional<size_t> ChooseWorker(std::span<const std::unique_ptr<Worker>> workers,
                                   double stuck_step_seconds,
                                   std::span<const std::unique_ptr<Sequence>> sequences);

}  // namespace ferrite

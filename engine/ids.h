// Ids that must not be mixed up. Tokens are plain int32_t, as kernels and the wire have them.
#pragma once

#include <compare>
#include <cstdint>

namespace ferrite {

using TokenId = int32_t;

// A fixed-size block of the KV pool: 0 to BackendInfo::num_blocks - 1.
struct BlockId {
  int32_t value = -1;
  auto operator<=>(const BlockId&) const = default;
};

// A stable place in the backend's per-sequence tables: 0 to BackendInfo::max_sequences - 1. A
// sequence keeps its slot from the step that admits it until it is freed or preempted.
struct SeqSlot {
  int32_t value = -1;
  auto operator<=>(const SeqSlot&) const = default;
};

}  // namespace ferrite

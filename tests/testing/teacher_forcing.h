// Greedy agreement with a reference, counted with its tokens fed back whatever a backend chose.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend.h"
#include "engine/ids.h"

namespace ferrite::test {

// A reference's greedy continuation of a prompt.
struct ReferenceText {
  std::string name;
  std::vector<TokenId> prompt;
  std::vector<TokenId> tokens;
  std::vector<double> leads;  // by token: its logit less the second best's
};

// How the texts go through the backend.
struct ForcingPlan {
  int32_t together = 1;   // so many texts at a time
  int32_t chunk = 0;      // tokens of a prompt a step; 0: all
  int32_t stagger = 0;    // steps from the start of one text to that of the next
  bool preempts = false;  // halfway each text loses its cache and is computed anew
};

struct Disagreement {
  std::string text;
  size_t index = 0;  // of the token in the continuation
  TokenId expected = 0;
  TokenId actual = 0;
  double lead = 0;  // of `expected`, by the reference
};

struct Agreement {
  int64_t tokens = 0;
  std::vector<Disagreement> disagreements;

  // Those where the reference led by more than `lead`, one a line; empty if there are none.
  std::string Beyond(double lead) const;
};

// The backend is new, and has a block for every block_size tokens of all texts (of both runs of
// each when preempting), a slot for each of those together and room for their prompts in a step.
// Errors are the backend's.
absl::StatusOr<Agreement> ForceReference(Backend* backend, std::span<const ReferenceText> texts,
                                         const ForcingPlan& plan);

}  // namespace ferrite::test

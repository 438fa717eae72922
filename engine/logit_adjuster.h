// Penalties, biases and barred tokens, as they change a row of logits before a token is chosen.
#pragma once

#include <span>

#include "engine/sampling_params.h"
#include "engine/token_counts.h"

namespace ferrite {

// In order: repetition_penalty divides the positive logits of tokens in `counts` and multiplies
// their negative ones (CTRL, arxiv.org/abs/1909.05858); of tokens in the output, frequency_penalty
// times their count and presence_penalty are subtracted; logit_bias is added; banned tokens and,
// where there is a list of allowed ones, all others become -infinity. Ids beyond `logits` are
// passed over.
void AdjustLogits(const SamplingParams& params, const TokenCounts& counts, std::span<float> logits);

}  // namespace ferrite

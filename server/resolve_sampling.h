// Resolves how tokens are chosen and when a generation ends.
#pragma once

#include "absl/status/status.h"
#include "engine/request.h"
#include "ferrite/v1/inference.pb.h"
#include "server/generate_params.h"

namespace ferrite {

// Unset knobs come from the model's generation config, then from `context.defaults`; an unset seed
// is drawn. InvalidArgument names the field, its value and the bound.
absl::Status ResolveSampling(const v1::SamplingParams& wire, const RequestContext& context,
                             SamplingParams* params);

// All but max_new_tokens, once the sampling is resolved: end tokens, and whether any token is left
// to sample beside them. Errors as above.
absl::Status ResolveStopping(const v1::StoppingParams& wire, const RequestContext& context,
                             EngineRequest* request);

}  // namespace ferrite
